"""Reading weights files: nothing in them runs, and what cannot be read is one sentence."""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cn_clip.errors import WeightsError
from cn_clip.files import write_atomically

Checkpoint = dict[str, Any]
"""What `torch.save` wrote: plain data and tensors by name; `Any` since it is the writer's choice."""


class _NumberType:
    """Stands in for `numpy.dtype` while a checkpoint is read."""

    def __init__(self, code: str, *_align_and_copy: bool) -> None:
        self.code, self.order = code, "<"

    def __setstate__(
        self, state: tuple[Any, ...]
    ) -> None:  # Any: numpy's own tuple; only the byte order matters
        self.order = {"|": "<"}.get(state[1], state[1])


_STRUCT_CODES = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q"}
_STRUCT_CODES |= {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "b1": "?"}


def _plain_number(kind: _NumberType, raw: bytes) -> float | int | bool:
    """Stands in for numpy's scalar: the Python number it holds."""
    if not isinstance(kind, _NumberType) or kind.code not in _STRUCT_CODES:
        raise pickle.UnpicklingError("a numpy scalar that is not a number")
    (number,) = struct.unpack(kind.order + _STRUCT_CODES[kind.code], raw)
    return number


# the reference's learning rate is a numpy scalar after warm-up, which torch's restricted reader refuses
_NUMBERS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_plain_number, "numpy.core.multiarray.scalar"),
    (_plain_number, "numpy._core.multiarray.scalar"),
    (_NumberType, "numpy.dtype"),
]

# what torch's reader raises for files that are cut short, damaged or no weights at all
_DAMAGE = (RuntimeError, OSError, EOFError, ValueError, LookupError, AttributeError, TypeError, struct.error)


def read_checkpoint(path: str | Path) -> Checkpoint:
    """What a checkpoint, state-dict or safetensors file holds, on the CPU; numpy numbers come as Python's."""
    path = Path(path)
    if path.is_dir() and path.suffix == ".sharded":
        raise WeightsError(
            f"{path} is a sharded checkpoint: make one file of it with `cn-clip consolidate {path}` and give that"
        )
    if path.is_dir():
        raise WeightsError(f"{path} is a folder: name the weights file inside it")
    if not path.is_file():
        raise WeightsError(
            f"there is no weights file {path}: put the checkpoint there, or give the path of one you have"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if is_jit_archive(path):
        raise WeightsError(
            f"{path} is a TorchScript archive: turn it into weights first with "
            "cn_clip/preprocess/transform_openai_pretrain_weights.py --raw-ckpt-path"
        )
    checkpoint = _read_torch(path)
    if not isinstance(checkpoint, dict):
        raise WeightsError(f"{path} holds a {type(checkpoint).__name__}, not weights by name")
    return checkpoint


def _read_torch(path: Path) -> Any:  # Any: whatever was saved
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            # a mapped file is read where it is used: the optimizer state often is not
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is not a weights file, or holds objects beside weights ({_first(error)}): nothing in it was run; give another file"
        ) from error
    except _DAMAGE as error:
        raise WeightsError(
            f"{path} is cut short or damaged, or no weights file ({_first(error)}): give a whole copy of it, or another file"
        ) from error


def _read_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise WeightsError(
            f"{path} is cut short or damaged, or no safetensors file ({_first(error)}): give a whole copy of it, or another file"
        ) from error


def _first(error: Exception) -> str:
    """The first sentence of an error: torch adds paragraphs of advice that would turn its protection off."""
    said = str(error).strip().split("\n")[0].split(". ")[0][:200]
    return said if " " in said else "the file has another form, or nothing in it"


def is_jit_archive(path: Path) -> bool:
    """Whether the file is a TorchScript archive, as OpenAI publishes its models."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/", 1)[-1] == "constants.pkl" for name in archive.namelist())


def read_jit_weights(path: Path) -> dict[str, Tensor]:
    """State dict of a TorchScript archive; the model in it is loaded, never called."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch has deprecated it; OpenAI's files need it
            return dict(torch.jit.load(path, map_location="cpu").state_dict())
    except RuntimeError as error:
        raise WeightsError(f"{path} is a damaged TorchScript archive: {_first(error)}") from error


def write_weights(weights: dict[str, Tensor], path: str | Path) -> None:
    """Save weights by name; the file appears whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(weights, file))
