"""The registry folders that settings choose from."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from cn_clip.errors import ConfigError

FOLDERS = {
    "pairs": "cn_clip.data.pairs",
    "augment": "cn_clip.clip.augment",
    "pair_loss": "cn_clip.losses.pair",
}
"""Registry folder of each kind of part."""


def module_of(kind: str, name: str) -> Any:  # Any: a module; its contract is in the folder's docstring
    """Module `name` of the registry folder of `kind`; ConfigError lists the folder when it has none."""
    folder = FOLDERS[kind]
    names = [found.name for found in pkgutil.iter_modules(importlib.import_module(folder).__path__)]
    if name not in names:
        raise ConfigError(
            f"there is no {kind.replace('_', ' ')} of type {name!r}; choose from {', '.join(names)}"
        )
    return importlib.import_module(f"{folder}.{name}")


def resolve_options(kind: str, name: str) -> type:
    """`Options` of a registry module."""
    options: type = module_of(kind, name).Options
    return options
