"""What CroPS measured on people (arXiv 2511.15443, Tables 5, 6, 8 and 9), in %, by model type and arm.

The arms are cumulative. Whether the effects are absolute or relative is not stated.
"""

from __future__ import annotations

from collections.abc import Mapping

RATIO_TABLES: Mapping[str, str] = {"dense": "Table 5", "sparse": "Table 8"}
EFFECT_TABLES: Mapping[str, str] = {"dense": "Table 6", "sparse": "Table 9"}

RATIOS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "dense": {
        "baseline": (29.8, 32.5),
        "+p1": (34.8, 35.1),
        "+p2": (38.7, 41.8),
        "crops": (40.9, 44.3),
    },
    "sparse": {
        "baseline": (20.8, 29.1),
        "+p1": (27.9, 38.7),
        "+p2": (28.6, 40.6),
        "crops": (33.8, 44.7),
    },
}
"""Ratio_rank and Ratio_show."""

EFFECTS: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "dense": {
        "+p1": (0.448, 0.222, -0.334),
        "+p2": (0.756, 0.361, -0.487),
        "crops": (0.869, 0.483, -0.646),
    },
    "sparse": {
        "+p1": (0.328, 0.187, -0.297),
        "+p2": (0.573, 0.310, -0.458),
        "crops": (0.783, 0.423, -0.614),
    },
}
"""CTR, LPR and RQR against the baseline."""
