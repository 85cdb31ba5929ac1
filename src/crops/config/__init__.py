"""A run: one TOML, validated; every default of the project is here and nowhere else.

A key that is not known is an error that names the nearest known key.
"""

from crops.config.engine import (
    BotConfig,
    DailyConfig,
    DecayConfig,
    EngineConfig,
    FeedConfig,
    KnowledgeConfig,
    OnlineSearchConfig,
    ReformulationConfig,
)
from crops.config.evaluation import EvaluationConfig
from crops.config.index import IndexConfig
from crops.config.models import LLMConfig, RelevanceConfig
from crops.config.platform import TOPICS, PlatformConfig, Size
from crops.config.run import RunConfig, load_config
from crops.config.serving import ServingConfig
from crops.config.training import PRESET_TRAINING, TRANSFORMER_TRAINING, TrainingConfig

__all__ = [
    "PRESET_TRAINING",
    "TOPICS",
    "TRANSFORMER_TRAINING",
    "BotConfig",
    "DailyConfig",
    "DecayConfig",
    "EngineConfig",
    "EvaluationConfig",
    "FeedConfig",
    "IndexConfig",
    "KnowledgeConfig",
    "LLMConfig",
    "OnlineSearchConfig",
    "PlatformConfig",
    "RelevanceConfig",
    "ReformulationConfig",
    "RunConfig",
    "ServingConfig",
    "Size",
    "TrainingConfig",
    "load_config",
]
