"""Which code made a cell."""

from __future__ import annotations

RESULTS_VERSION = 1
"""Raised by hand when a change of the code changes results: cells of another number are not read."""
CODE_VERSION = "cbbea9338c73"
"""Changed by hand when the code from logs to figures changes so that figures may differ in ways that do not
count (last digits, another order of ties): every cell notes it, and a table of cells that differ says so."""
