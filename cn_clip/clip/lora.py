"""LoRA."""

from __future__ import annotations


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an adapter's weights."""
    return ".lora_" in name
