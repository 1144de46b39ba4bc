"""Flags of a command from the fields of a dataclass, and back."""

from __future__ import annotations

import argparse
import dataclasses
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from cn_clip.config.describe import field_docs

Options = TypeVar("Options")


def add_flags(group: argparse._ArgumentGroup, cls: type) -> None:
    """One flag for each field: its name with dashes, its meaning from the line beneath it; no default makes it required."""
    hints, meanings = get_type_hints(cls), field_docs(cls)
    # stable: what must be given comes first
    for field in sorted(dataclasses.fields(cls), key=lambda field: field.default is not dataclasses.MISSING):
        is_required = field.default is dataclasses.MISSING
        meaning = meanings[field.name].replace("%", "%%")
        if not is_required and field.default not in (None, False, ()):
            meaning += f" (default: {field.default})"
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=field.name,
            required=is_required,
            default=argparse.SUPPRESS,
            help=meaning,
            **_how(hints[field.name], field.default),
        )


def _how(
    hint: Any, default: object = None
) -> dict[str, Any]:  # Any: type hints and the many arguments of argparse
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (hint,) = (choice for choice in inner if choice is not type(None))
        return _how(hint)
    if origin is Literal:
        return {"choices": inner}
    if origin is tuple:
        return {"nargs": "+", **_how(inner[0])}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction if default is True else "store_true"}
    metavar = {Path: "PATH", int: "N", float: "X"}.get(hint)
    return {"type": hint} if metavar is None else {"type": hint, "metavar": metavar}


def with_hyphens(words: Sequence[str]) -> list[str]:
    """Names of flags with hyphens for underscores, as other commands of this package write them; values as they are."""
    flags = [word.partition("=") if word.startswith("--") else (word, "", "") for word in words]
    return [
        (name.replace("_", "-") if word.startswith("--") else name) + sign + value
        for word, (name, sign, value) in zip(words, flags, strict=True)
    ]


def options_of(cls: type[Options], flags: argparse.Namespace) -> Options:
    """The dataclass that the parsed flags describe."""
    given = vars(flags)
    names = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]  # Options is always a dataclass
    values = {name: given[name] for name in names if name in given}
    return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
