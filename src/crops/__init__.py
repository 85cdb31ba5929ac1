"""crops: an open CroPS. Mine graded positives from logs, train with H-InfoNCE, see the filter bubble break."""

__version__ = "0.1.0"
