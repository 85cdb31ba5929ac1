"""The simulated short-video platform: it emits the tables of the contracts, and the truth beside them."""

from crops.platform.behaviour import Behaviour
from crops.platform.cascade import ROUTES
from crops.platform.day import DayLogs, Platform, simulate_day
from crops.platform.simulate import build_platform, day_name, write_day, write_items, write_truth
from crops.platform.sizes import SIZES, Size

__all__ = [
    "ROUTES",
    "SIZES",
    "Behaviour",
    "DayLogs",
    "Platform",
    "Size",
    "build_platform",
    "day_name",
    "simulate_day",
    "write_day",
    "write_items",
    "write_truth",
]
