"""Row rules and columns that several tables share."""

from __future__ import annotations

from crops.schema.contract import EARLIEST_US, LATEST_US, MAX_DURATION_MS, VISIBLE, Column, Merge, Rule


def blank(text: str) -> str:
    """Return the predicate of a text without a character to read (`crops.text.has_text`).

    It looks at the first character before it asks the regular expression, at a hundredth of the cost: all
    are to be read between "!" and "~", and between the first and the last Chinese character of U+3400 to
    U+9FFF.
    """
    visible = f"({text} >= '!' and {text} < chr(127) or {text} >= '\u3400' and {text} < '\ua000')"
    return f"not {visible} and not regexp_matches({text}, '{VISIBLE}')"


def optional(name: str, type_: str, doc: str, merge: Merge = "min", *, prose: bool = False) -> Column:
    """Return a column that may be absent, and null where present."""
    return Column(name, type_, doc, nullable=True, optional=True, prose=prose, merge=merge)


def time_rule(column: str) -> Rule:
    """Return the rule that a time is in microseconds UTC."""
    return Rule(
        "time_unit",
        column,
        f"{column} < {EARLIEST_US} or {column} > {LATEST_US}",
        f"give {column} in integer microseconds since 1970 UTC (seconds times 1000000, ms times 1000)",
    )


def duration_rules(column: str) -> tuple[Rule, Rule]:
    """Return the rules that a duration is in milliseconds and not negative."""
    return (
        Rule(
            f"negative_{column}",
            column,
            f"{column} < 0",
            f"{column} counts milliseconds and cannot be negative",
        ),
        Rule(
            f"unit_{column}",
            column,
            f"{column} > {MAX_DURATION_MS} and {column} < {2**63}",
            f"give {column} in milliseconds: more than seven days is a wrong unit",
        ),
    )


def count_rule(column: str) -> Rule:
    """Return the rule that a count is not negative."""
    return Rule(f"negative_{column}", column, f"{column} < 0", f"{column} is a count and cannot be negative")


def unshown_rule(column: str, reason: str, done: str) -> Rule:
    """Return the rule that only what was shown can be acted on; `done` is the predicate of the act."""
    return Rule(
        reason,
        column,
        f"{done} and stage <> 'exposed'",
        f"only shown documents can be {reason.removesuffix('_unshown')}: correct stage or {column}",
    )
