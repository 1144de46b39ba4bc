"""The `Params:` lines with which every evaluation command begins."""

from __future__ import annotations

from argparse import Namespace


def format_params(flags: Namespace) -> str:
    """`Params:` and one indented `name: value` line a flag, sorted by name."""
    return "\n".join(["Params:", *(f"  {name}: {value}" for name, value in sorted(vars(flags).items()))])
