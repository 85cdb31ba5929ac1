"""The simulated short-video platform: it emits the tables of the contracts, and the truth next to them."""

from crops.platform.annotator import annotate, query_grades
from crops.platform.day import (
    FEED,
    IMPRESSIONS,
    SEARCHES,
    DayLogs,
    Platform,
    Served,
    build_platform,
    day_file,
    day_name,
    replay_day,
    same_for_all,
    sessions_per_day,
    simulate_day,
    write_day,
    write_items,
    write_truth,
)
from crops.platform.learned import IdModel, fit_id_model
from crops.platform.realism import ANCHORS, BUBBLE, Anchor, Days, distributions, observe
from crops.platform.search import ROUTES
from crops.platform.world import SIZES, JudgedWorld, Size, World, platform_version

__all__ = [
    "ANCHORS",
    "BUBBLE",
    "FEED",
    "IMPRESSIONS",
    "ROUTES",
    "SEARCHES",
    "SIZES",
    "Anchor",
    "DayLogs",
    "Days",
    "IdModel",
    "JudgedWorld",
    "Platform",
    "Served",
    "Size",
    "World",
    "annotate",
    "build_platform",
    "day_file",
    "day_name",
    "distributions",
    "fit_id_model",
    "observe",
    "platform_version",
    "query_grades",
    "replay_day",
    "same_for_all",
    "sessions_per_day",
    "simulate_day",
    "write_day",
    "write_items",
    "write_truth",
]
