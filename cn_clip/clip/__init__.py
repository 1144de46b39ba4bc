"""The public API: names of the reference's `cn_clip.clip`, loaded when first used so that the import stays fast."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cn_clip.clip.bert_tokenizer import FullTokenizer
    from cn_clip.clip.model import convert_state_dict
    from cn_clip.clip.utils import available_models, image_transform, load, load_from_name, tokenize

    _tokenizer: FullTokenizer

__all__ = [
    "FullTokenizer",
    "available_models",
    "convert_state_dict",
    "image_transform",
    "load",
    "load_from_name",
    "tokenize",
]

_HOME = {
    "FullTokenizer": "bert_tokenizer",
    "convert_state_dict": "model",
    "available_models": "utils",
    "image_transform": "utils",
    "load": "utils",
    "load_from_name": "utils",
    "tokenize": "utils",
}
# the reference imports them, so `cn_clip.clip.model` must just be there
_MODULES = ("bert_tokenizer", "model", "utils")


def __getattr__(name: str) -> Any:  # Any: a function, a class, a module or the tokenizer, by `name`
    if name in _MODULES:
        return importlib.import_module(f"cn_clip.clip.{name}")
    if name == "_tokenizer":
        value = importlib.import_module("cn_clip.clip.bert_tokenizer").FullTokenizer()
    elif name in _HOME:
        value = getattr(importlib.import_module(f"cn_clip.clip.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
