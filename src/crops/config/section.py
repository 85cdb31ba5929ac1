"""What every section of the settings is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Settings whose unknown keys are errors and whose attribute docstrings are their help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
