"""Commands as functions: what a shell gives as text, Python may give as text, paths or lists.

An option for a setting is made from the setting's field: its type, default and help.
"""

from __future__ import annotations

import datetime
import functools
import inspect
import numbers
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

import typer
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from rich.markup import escape
from typer.models import OptionInfo, ParameterInfo

from crops.config import RunConfig, load_config
from crops.errors import CropsError
from crops.labels import POSITIVE_ORIGINS
from crops.outputs import check_local, console

P = ParamSpec("P")
R = TypeVar("R")
DEFAULTS = RunConfig()
"""An option left out falls back to the run's TOML, and that to these."""
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML of the run; options override it.")]
LogsOption = Annotated[
    Path | None,
    typer.Option(help="Accepted logs of a mining.", show_default="where the mining found them"),
]


class Options:
    """Marks the parameter of a command that gets the run's settings.

    `run: Annotated[RunConfig, Options(day="engine.days")]` gives the command an option `--day` for the
    setting `engine.days`, and `--config` for all others. In Python they are keywords, or one is: `run`. Where
    the function has a parameter `day`, too, it is told what was given, None if nothing was.
    """

    def __init__(self, **keys: str) -> None:
        """Name the settings by the names of their options."""
        self.keys = keys


def command(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function with its arguments checked and converted before it does anything.

    Paths may be text, and text a path; one value will do for a list; a day may be a `datetime.date`. The
    bounds of an option hold in Python too. A parameter `run` with `Options` becomes those options.

    Raises:
        CropsError: (the function returned) an argument is of another kind, or out of bounds, or a setting is.
    """
    name, parameters = function.__name__, dict(inspect.signature(function).parameters)
    # What it returns may be a name for mypy only.
    arguments = {key: hint for key, hint in function.__annotations__.items() if key != "return"}
    named = SimpleNamespace(__annotations__=arguments)
    hints = get_type_hints(named, function.__globals__, include_extras=True)
    keys: dict[str, str] = {}
    if takes_settings := "run" in parameters:
        del parameters["run"]
        keys = next(part for part in get_args(hints.pop("run")) if isinstance(part, Options)).keys
        hints |= {key: _hint(path) for key, path in keys.items()} | {"config": ConfigOption}
    passed = set(parameters)
    for key in hints:
        made = inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None)
        parameters[key] = parameters.get(key, made).replace(annotation=hints[key])
    adapters = functools.cache(lambda key: _adapter(hints[key]))
    signature = inspect.Signature(list(parameters.values()))

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        run = kwargs.pop("run", None) if takes_settings else None
        given = signature.bind(*args, **kwargs)
        for key, value in given.arguments.items():
            given.arguments[key] = _argument(name, key, value, *adapters(key))
        if not takes_settings:
            return function(*given.args, **given.kwargs)
        config = given.arguments.get("config")
        values = {path: _flat(given.arguments.get(key)) for key, path in keys.items()}
        if run is None:
            options = {
                path: f"--{key.replace('_', '-')}" for key, path in keys.items() if values[path] is not None
            }
            run = load_config(config, options, **{path.replace(".", "__"): values[path] for path in values})
        elif config is not None or any(value is not None for value in values.values()):
            raise CropsError(f"crops.{name}: give run, or its settings one by one, not both")
        elif not isinstance(run, RunConfig):
            raise CropsError(f"crops.{name}: run={run!r}: give what crops.config.load_config returns")
        for key in {*keys, "config"} - passed:
            given.arguments.pop(key, None)
        return function(*given.args, **given.kwargs, run=run)  # type: ignore[arg-type]

    checked.__signature__ = signature  # type: ignore[attr-defined]
    checked.__annotations__ = hints
    return checked


def _adapter(hint: Any) -> tuple[TypeAdapter[Any], bool]:  # noqa: ANN401 (any annotation)
    kind, *rest = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    several = any(get_origin(part) is list for part in (kind, *get_args(kind)))
    for option in rest:
        if isinstance(option, ParameterInfo) and not several and (option.min, option.max) != (None, None):
            kind = Annotated[kind, Field(ge=option.min, le=option.max)]
    return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)), several


def _argument(command: str, name: str, value: Any, adapter: TypeAdapter[Any], several: bool) -> Any:  # noqa: ANN401
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


def of_recipe(run: RunConfig) -> str:
    """Return the option that the next command needs, too."""
    return "" if run.recipe is None else f" --recipe {run.recipe}"


def shown(path: str | Path) -> str:
    """Return a path as it may be typed where the command was called, quoted for the shell."""
    text, here = str(path), os.getcwd()
    if os.path.isabs(text) and text.startswith(here + os.sep):
        text = os.path.relpath(text, here)
    return shlex.quote(text)


def verdict(
    model: str | Path, samples: Path, logs: str | Path | None, days: Sequence[str], options: str = ""
) -> str:
    """Return the command that says what a model, or several as they are typed, is worth.

    `samples` are what it was trained on, `days` those of the test, ascending, and empty where they are not
    known, as the accepted `logs` are None.
    """
    day = "..".join(dict.fromkeys((days[0], days[-1]))) if days else "DAY"
    place = "LOGS" if logs is None else shown(logs)
    return f"crops evaluate {model} bm25 --logs {place} --samples {shown(samples)} --day {day}{options}"


def brought(report: Mapping[str, Any]) -> bool:
    """Return whether the report of a mining has positives of other sources than the clicks of search."""
    return any(report.get("sources", {}).get(row.key, {}).get("kept") for row in POSITIVE_ORIGINS)


def say_baseline(samples: Path, base: str, then: str) -> None:
    """Say how to see whether the new sources helped: the same training on clicks and stages alone.

    `base` is the model to train on the samples, `then` the command that compares.
    """
    said = f"did the new sources help? crops train {shown(samples)} {base} --sources search\nand then: {then}"
    console.print(said, soft_wrap=True, markup=False, highlight=False)


def _flat(value: Any) -> Any:  # noqa: ANN401
    """Return a list with its values cut at commas, None for an empty one; any other value as it is."""
    if not isinstance(value, list):
        return value
    return [part.strip() for one in value for part in str(one).split(",")] or None


def option(path: str) -> OptionInfo:
    """Return the option for a setting, e.g. `engine.memory`: help and default are those of its field.

    What is left out is None: the setting then comes from the TOML or has its default, which the help shows.
    """
    field, default = _field(path)
    kind, text = _kind(field), " ".join((field.description or "").split())
    if get_origin(kind) is Literal and not all(str(value) in text for value in get_args(kind)):
        text += f" One of: {', '.join(map(str, get_args(kind)))}."
    if get_origin(kind) is tuple:
        text += " Repeat, or separate by commas."
        default = ",".join(default or ()) or None
    if isinstance(default, bool):
        default = "yes" if default else "no"
    shown_default = False if default is None else str(default)
    made: OptionInfo = typer.Option(help=escape(text), show_default=shown_default)
    return made


def _hint(path: str) -> Any:  # noqa: ANN401 (an annotation)
    """Return the annotation of an option for a setting; the run's settings check the value."""
    kind = _kind(_field(path)[0])
    plain: Any = {Literal: str, tuple: list[str]}.get(get_origin(kind), kind)
    return Annotated[plain | None, option(path)]


def _field(path: str) -> tuple[FieldInfo, Any]:
    """Return the field of a setting and its default."""
    section: BaseModel = DEFAULTS
    *sections, name = path.split(".")
    for part in sections:
        section = getattr(section, part)
    return type(section).model_fields[name], getattr(section, name)


def _kind(field: FieldInfo) -> Any:  # noqa: ANN401
    """Return the type of a setting that is there."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    return kinds[0] if NoneType in get_args(field.annotation) else field.annotation
