"""The page of all settings, from the classes that read a run's TOML."""

from __future__ import annotations

from collections.abc import Iterator

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from crops.config import RunConfig

HEAD = """# Settings

One TOML describes a run; `--config run.toml` gives it to any command, and an option of the command overrides
it. A key left out has the default below, a misspelt one is an error that names the nearest known key. Every
output folder holds the resolved `config.toml`.

```toml
seed = 1

[engine.reformulation]
window_s = 60

[training]
encoder = "minilm"
```
"""


def settings_page() -> str:
    """Return the Markdown: a table for each section of the TOML."""
    return HEAD + "".join(_section(path, section) for path, section in _sections(RunConfig(), ()))


def _sections(section: BaseModel, path: tuple[str, ...]) -> Iterator[tuple[str, BaseModel]]:
    yield ".".join(path), section
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _sections(value, (*path, name))


def _section(path: str, section: BaseModel) -> str:
    fields = {
        name: field
        for name, field in type(section).model_fields.items()
        if not isinstance(getattr(section, name), BaseModel)
    }
    if not fields:
        return ""
    lines = [f"\n## {path or 'Of the whole run'}\n", _one_line(type(section).__doc__), ""]
    lines += ["| key | default | |", "|---|---|---|"]
    lines += [_row(name, field, getattr(section, name)) for name, field in fields.items()]
    return "\n".join(lines) + "\n"


def _row(name: str, field: FieldInfo, value: object) -> str:
    return f"| `{name}` | {_written(value)} | {_one_line(field.description)} |"


def _written(value: object) -> str:
    """Return a default as TOML writes it."""
    if value is None:
        return "none"
    plain = list(value) if isinstance(value, tuple) else value
    text = tomli_w.dumps({"value": plain}, indent=0).removeprefix("value = ").strip()
    return f"`{_one_line(text)}`".replace("`[ ", "`[").replace(", ]`", "]`")


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
