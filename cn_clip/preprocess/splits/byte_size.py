"""Sizes as people write them: 500MB, 10 GiB."""

from __future__ import annotations

import re

from cn_clip.errors import ConfigError

_UNITS = {"": 1, "B": 1} | {
    f"{prefix}{kind}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for kind, base in (("B", 1000), ("", 1000), ("iB", 1024))
}
_TOO_MANY_BYTES = 2**63  # for any file system
_LEAST_WITHOUT_UNIT = 10**6
"""Who writes a smaller number has forgotten the unit."""
_BY_NAME = {name.upper(): size for name, size in _UNITS.items()}


def read_byte_size(text: str, flag: str) -> int:
    """Bytes; K, M, G and T count in thousands, Ki, Mi, Gi and Ti in 1024; small numbers need a unit. ConfigError names the flag."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    unit = _BY_NAME.get(found[2].upper()) if found else None
    num_bytes = float(found[1]) * unit if found and unit else 0.0
    if found is None or not 1 <= num_bytes < _TOO_MANY_BYTES:
        raise ConfigError(
            f"{flag} {text!r} is not a size: give a number with MB, GB, MiB or GiB, for example 10GB"
        )
    if not found[2] and num_bytes < _LEAST_WITHOUT_UNIT:
        shown = found[1]
        raise ConfigError(
            f"{flag} {text!r} is {shown} byte{'s'[: num_bytes != 1]}: give a unit, for example {shown}GB"
        )
    return int(num_bytes)
