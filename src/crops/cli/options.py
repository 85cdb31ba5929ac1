"""Commands as functions: what a shell gives as text, Python may give as text, paths or lists."""

from __future__ import annotations

import datetime
import functools
import inspect
import numbers
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

import typer
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typer.models import ParameterInfo

from crops.config import RunConfig
from crops.errors import CropsError
from crops.outputs import check_local

P = ParamSpec("P")

R = TypeVar("R")


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with its arguments checked and converted before it does anything.

    Paths may be text, and text a path; one value will do for a list; a day may be a `datetime.date`. The
    bounds of an option hold in Python too.

    Raises:
        CropsError: (the function returned) an argument is of another kind, or out of bounds.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        adapters = _adapters(function)
        for name, value in given.arguments.items():
            given.arguments[name] = _argument(function.__name__, name, value, *adapters[name])
        return function(*given.args, **given.kwargs)

    return checked


@functools.cache
def _adapters(function: Callable[..., object]) -> dict[str, tuple[TypeAdapter[Any], bool]]:
    """Return what checks each parameter, and whether it takes a list."""
    annotations = {name: hint for name, hint in function.__annotations__.items() if name != "return"}
    hints = get_type_hints(
        SimpleNamespace(__annotations__=annotations), function.__globals__, include_extras=True
    )
    return {name: _adapter(hint) for name, hint in hints.items()}


def _adapter(hint: Any) -> tuple[TypeAdapter[Any], bool]:  # noqa: ANN401 (any annotation)
    kind, *rest = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    several = any(get_origin(part) is list for part in (kind, *get_args(kind)))
    for option in rest:
        if isinstance(option, ParameterInfo) and not several and (option.min, option.max) != (None, None):
            kind = Annotated[kind, Field(ge=option.min, le=option.max)]
    return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)), several


def _argument(
    command: str,
    name: str,
    value: Any,  # noqa: ANN401 (what a user gives)
    adapter: TypeAdapter[Any],
    several: bool,
) -> Any:  # noqa: ANN401
    plain = _plain(value)
    if several and plain is not None:
        alone = isinstance(value, str | os.PathLike) or not isinstance(value, Iterable)
        plain = [plain] if alone else [_plain(one) for one in value]
    try:
        found = adapter.validate_python(plain)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        wrong = "a path is text or a pathlib.Path" if first["type"] == "path_type" else first["msg"]
        raise CropsError(f"crops.{command}: {name}={value!r}: {wrong[0].lower()}{wrong[1:]}") from error
    for one in found if isinstance(found, list) else [found]:
        if isinstance(one, Path):
            check_local(one)
    return found


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return paths and days as text, whole numbers of any make as int."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return value


# ------------------------------------------------------------------------------
# Options that several commands share, and the defaults that help texts show.


DEFAULTS = RunConfig()

"""An option left out falls back to the run's TOML, and that to these."""

ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML of the run; options override it.")]

RelevanceOption = Annotated[
    str | None,
    typer.Option(
        help="theta: minilm, a SentenceTransformer path or name, or none.",
        show_default=DEFAULTS.relevance.model,
    ),
]

SeedOption = Annotated[
    int | None, typer.Option(help="Seed of everything random.", show_default=str(DEFAULTS.seed))
]

LogsOption = Annotated[
    Path | None,
    typer.Option(help="Accepted logs of a mining.", show_default="where the mining found them"),
]
