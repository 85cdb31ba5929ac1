"""crops: an open CroPS. Mine graded positives from logs, train with H-InfoNCE, break the filter bubble."""

__version__ = "0.1.0"
