"""A whole run, and how its TOML is read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from crops.config.engine import EngineConfig
from crops.config.evaluation import EvaluationConfig
from crops.config.index import IndexConfig
from crops.config.models import LLMConfig, RelevanceConfig
from crops.config.platform import PlatformConfig
from crops.config.section import Section
from crops.config.serving import ServingConfig
from crops.config.training import TrainingConfig
from crops.errors import CropsError, nearest


class RunConfig(Section):
    """A whole run."""

    seed: int = Field(0, ge=0)
    platform: PlatformConfig = PlatformConfig()
    engine: EngineConfig = EngineConfig()
    relevance: RelevanceConfig = RelevanceConfig()
    llm: LLMConfig = LLMConfig()
    training: TrainingConfig = TrainingConfig()
    index: IndexConfig = IndexConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    serving: ServingConfig = ServingConfig()

    def dump(self) -> dict[str, Any]:
        """Return the resolved settings as TOML-ready values (None is left out)."""
        return self.model_dump(mode="json", exclude_none=True)


def load_config(path: str | Path | None = None, **overrides: object) -> RunConfig:
    """Read a run's TOML and lay `overrides` over it.

    Args:
        path: the TOML file; the defaults when None.
        overrides: dotted keys with `__` for the dot, e.g. `training__steps=10`; None is no override.

    Raises:
        CropsError: the file is unreadable, a key is unknown or a value is out of range.
    """
    path = None if path is None else Path(path)
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise CropsError(f"{path}: cannot read the settings: {error}") from error
    for key, value in overrides.items():
        if value is not None:
            _set(values, key.split("__"), value)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise CropsError(_explain(error, path)) from error


def _set(values: dict[str, Any], keys: list[str], value: object) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
    values[keys[-1]] = value


def _explain(error: ValidationError, path: Path | None) -> str:
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            hint = nearest(str(fault["loc"][-1]), _known_keys(fault["loc"][:-1]))
            lines.append(f"unknown setting '{where}'.{hint}")
        else:
            lines.append(f"setting '{where}' = {fault['input']!r}: {fault['msg']}")
    return f"{path or 'settings'}: " + "; ".join(lines)


def _known_keys(section: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for key in section:
        annotation = model.model_fields[str(key)].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)
