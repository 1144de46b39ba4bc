"""YAML and overrides to frozen dataclasses, and back to plain data.

Order of authority, lowest first: the dataclass default, the YAML file, legacy flags that were typed, `--set a.b=value`.
Values are converted by the field's type, since YAML 1.1 reads `5e-5` as a string. `$NAME` in a string is the
environment's.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from cn_clip.config.schema import Part, Settings, WeightedPart
from cn_clip.errors import ConfigError

Section = TypeVar("Section")
Resolver = Callable[[str, str], type]
"""(kind of part, module name) -> that module's `Options`; raises ConfigError for a name the folder does not have."""


class _Loader(yaml.SafeLoader):
    """Safe, and a name that stands twice in one group is an error: YAML would silently drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [name.value for name, _ in node.value if isinstance(name, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Plain settings of a YAML file; an empty file is no settings.

    `base: other.yaml` (beside this file) is read first and this file's settings are laid over it; `above` holds the
    files on the way here, so that a circle is an error.
    """
    settings = _parsed(Path(path))
    base = settings.pop("base", None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise ConfigError(f"{path}: base is {base!r}; give the name of a YAML beside it")
    here = Path(path).resolve()
    if here in above:
        raise ConfigError(f"{path}: `base: {base}` leads round in a circle; remove one `base`")
    return lay_over(read_yaml(here.parent / base, (*above, here)), settings)


def lay_over(base: Settings, settings: Settings) -> dict[str, Any]:
    """`settings` over `base`, group by group; a part of another `type` replaces that of the base."""
    merged = _copied(base)
    for name, value in settings.items():
        under = merged.get(name)
        if (
            isinstance(under, Mapping)
            and isinstance(value, Mapping)
            and value.get("type") in (None, under.get("type"))
        ):
            value = lay_over(under, value)
        # else it replaces: another `type` has other options than those the base gives
        merged[name] = value
    return merged


# the last two: a date in no calendar or a number of thousands of digits, and lists in lists in lists
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text file in UTF-8: give a YAML of settings") from error
    try:
        settings = yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path} must hold settings by name, like `train: {{batch_size: 64}}`, not {settings!r}"
        )
    return settings


def parse_override(word: str) -> tuple[str, Any]:
    """`optim.lr=1e-5` -> ("optim.lr", "1e-5"); the value is read as YAML."""
    path, equals, value = word.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set takes NAME=VALUE, for example optim.lr=1e-5, not {word!r}")
    try:
        return path, yaml.safe_load(value)
    except _NOT_YAML as error:
        raise ConfigError(f"--set {word}: the value is not valid YAML") from error


def merge(settings: Settings, overrides: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Settings with each dotted path set, later ones winning; the input is left as it is."""
    merged = _copied(settings)
    for path, value in overrides:
        *parents, name = path.split(".")
        section = merged
        for parent in parents:
            child = section.get(parent)
            if isinstance(child, str):  # `augment: none` is short for `augment: {type: none}`
                child = {"type": child}
            if child is not None and not isinstance(child, dict):
                raise ConfigError(f"{path}: {parent} is {child!r}, not a group of settings")
            section[parent] = child = {} if child is None else child
            section = child
        section[name] = value
    return merged


def _copied(settings: Settings) -> dict[str, Any]:
    return {k: _copied(v) if isinstance(v, Mapping) else v for k, v in settings.items()}


def build(cls: type[Section], settings: Settings, resolve: Resolver, where: str = "") -> Section:
    """Frozen `cls` from plain settings; every wrong name, type or choice is a ConfigError that says so."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]  # Section is always a dataclass
    for name in settings:
        if name not in fields:
            raise ConfigError(_unknown(where, str(name), fields))
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for name, field in fields.items():
        path = f"{where}{name}"
        if "part" in field.metadata:
            raw = settings.get(name, field.default)
            if isinstance(raw, Mapping) and "type" not in raw and field.default is not None:
                raw = {"type": field.default, **raw}  # `--set loss.gather=false` alone means the default loss
            optional = raw is None and field.default is None
            values[name] = None if optional else _part(field.metadata["part"], raw, resolve, path)
        elif "named_parts" in field.metadata:
            given = settings.get(name)
            values[name] = _named_parts(
                field.metadata["named_parts"], {} if given is None else given, resolve, path
            )
        elif "parts" in field.metadata and name in settings:
            values[name] = _weighted_parts(field.metadata["parts"], settings[name], resolve, path)
        elif name in settings:
            values[name] = _convert(hints[name], settings[name], resolve, path)
            _check_bounds(values[name], field.metadata, path)
        elif dataclasses.is_dataclass(hints[name]):
            # parts deep inside a section that was not given still need their resolver
            values[name] = build(hints[name], {}, resolve, f"{path}.")
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{path} is not set, and has no default")
    return cls(**values)


_BOUNDS: tuple[tuple[str, str, Callable[[float, float], bool]], ...] = (
    ("at_least", "{} or more", operator.ge),
    ("above", "more than {}", operator.gt),
    ("at_most", "at most {}", operator.le),
    ("below", "below {}", operator.lt),
)
"""Bounds of `schema.number`, as a sentence has them, and what tells whether a number is inside."""


def _check_bounds(value: Any, bounds: Mapping[str, Any], path: str) -> None:
    if value is None:
        return
    limits = [
        (name.format(bound), is_inside(value, bound))
        for kind, name, is_inside in _BOUNDS
        if (bound := bounds.get(kind)) is not None
    ]
    if not all(is_inside for _, is_inside in limits):
        raise ConfigError(f"{path} is {value}; give {', '.join(name for name, _ in limits)}")


def _unknown(where: str, name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    hint = (
        f"did you mean {where}{near[0]}?" if near else f"there are {', '.join(sorted(known)) or 'none here'}"
    )
    return f"{where}{name} is not a setting; {hint}"


def _part(kind: str, raw: Any, resolve: Resolver, path: str) -> Part:
    if isinstance(raw, str):
        raw = {"type": raw}
    if not isinstance(raw, Mapping) or not isinstance(raw.get("type"), str):
        raise ConfigError(f"{path} needs a `type`, for example {path}.type=NAME, not {raw!r}")
    options = {name: value for name, value in raw.items() if name != "type"}
    return Part(raw["type"], build(resolve(kind, raw["type"]), options, resolve, f"{path}."))


def _weighted_parts(kind: str, raw: Any, resolve: Resolver, path: str) -> tuple[WeightedPart, ...]:
    if not isinstance(raw, list | tuple):
        raise ConfigError(f"{path} is {raw!r}; give a list, each with a `type`")
    parts = []
    for number, item in enumerate(raw):
        where = f"{path}[{number}]"
        settings = dict(item) if isinstance(item, Mapping) else item
        weight = settings.pop("weight", None) if isinstance(settings, dict) else None
        if weight is not None:
            weight = _scalar(float, weight, f"{where}.weight")
            if weight <= 0:
                raise ConfigError(f"{where}.weight is {weight}; give more than 0, or take the part out")
        part = _part(kind, settings, resolve, where)
        parts.append(WeightedPart(part.type, part.options, weight))
    return tuple(parts)


def _named_parts(kind: str, raw: Any, resolve: Resolver, path: str) -> dict[str, Part]:
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{path} is {raw!r}; give names, each with a `type`")
    return {str(name): _part(kind, settings, resolve, f"{path}.{name}") for name, settings in raw.items()}


def _convert(hint: Any, value: Any, resolve: Resolver, path: str) -> Any:
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is {value!r}; give settings by name")
        return {str(name): item for name, item in value.items()}
    if origin in (Union, types.UnionType):
        if value is None and type(None) in choices:
            return None
        (hint,) = (choice for choice in choices if choice is not type(None))
        return _convert(hint, value, resolve, path)
    if origin is Literal:
        if value not in choices:
            raise ConfigError(f"{path} is {value!r}; choose from {', '.join(map(repr, choices))}")
        return value
    if origin is tuple:
        if isinstance(value, str):
            value = [value]  # one is a list too
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path} is {value!r}; give a list")
        return tuple(_convert(choices[0], item, resolve, f"{path}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        value = {} if value is None else value  # `optim:` with nothing beneath it
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path} is a group of settings, not {value!r}")
        return build(hint, value, resolve, f"{path}.")  # type: ignore[arg-type]  # hint is a class here
    return _scalar(hint, value, path)


def _scalar(hint: type, value: Any, path: str) -> Any:
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return expand_environment(str(value), path)
    if hint is bool and isinstance(value, bool):
        return value
    if hint in (int, float) and isinstance(value, int | float | str) and not isinstance(value, bool):
        number = _number(value)
        if hint is float and math.isfinite(number):
            return float(number)
        if hint is int and (isinstance(number, int) or number.is_integer()):
            return int(number)
    names = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    raise ConfigError(f"{path} is {value!r}; give {names[hint]}")


def _number(value: int | float | str) -> int | float:
    """The number in `value`; NaN, which no setting accepts, where there is none."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return math.nan
    return value if isinstance(value, int) else number


def expand_environment(text: str, path: str) -> str:
    """`$NAME` and `${NAME}` from the environment; an unset or empty name is an error, not an empty path."""

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not os.environ.get(name):
            raise ConfigError(
                f"{path} is {text!r}, but the environment has no {name}: export {name}=... first"
            )
        return os.environ[name]

    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, text)


def to_plain(config: Any) -> dict[str, Any]:
    """Nested plain data of a config, which `build` reads back to an equal one."""
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        plain[field.name] = _plain(getattr(config, field.name))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if not isinstance(value, Part):
        return to_plain(value) if dataclasses.is_dataclass(value) else value
    weight = {"weight": value.weight} if isinstance(value, WeightedPart) and value.weight is not None else {}
    return {"type": value.type, **to_plain(value.options), **weight}
