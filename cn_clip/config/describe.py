"""What each setting means, read from the line beneath its field: `--help`, the docs and a test all use this one text."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import get_type_hints


def describe(cls: type, where: str = "") -> dict[str, str]:
    """Dotted setting path -> its meaning, for every field of `cls` and of the sections in it; "" where none is written."""
    meanings = {}
    hints = get_type_hints(cls)
    written = field_docs(cls)
    for field in dataclasses.fields(cls):
        path = f"{where}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]) and "part" not in field.metadata:
            meanings.update(describe(hints[field.name], f"{path}."))
        else:
            meanings[path] = written.get(field.name, "")
    return meanings


def defaults(cls: type, where: str = "") -> dict[str, object]:
    """Dotted setting path -> its default, for every field of `cls` and of the sections in it that has one."""
    found: dict[str, object] = {}
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        path = f"{where}{field.name}"
        if dataclasses.is_dataclass(hints[field.name]) and "part" not in field.metadata:
            found.update(defaults(hints[field.name], f"{path}."))
        elif field.default is not dataclasses.MISSING:
            found[path] = field.default
    return found


def field_docs(cls: type) -> dict[str, str]:
    """Field name -> the string written beneath it, on one line; bases included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            docs.update(_docs_in(base))
    return docs


def _docs_in(cls: type) -> dict[str, str]:
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    if not isinstance(body, ast.ClassDef):
        raise TypeError(f"{cls!r} is not a class")
    docs = {}
    for field, below in zip(body.body, body.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
            continue
        if (
            isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            docs[field.target.id] = " ".join(below.value.value.split())
    return docs
