"""The index of a sharded checkpoint: JSON in the place of DCP's own, which is a pickle and would run code when read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.filesystem import (
    _StorageInfo,
)  # where a part lies; DCP has no public name for it
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from cn_clip.errors import WeightsError

INDEX, FORMAT = "index.json", 1
Index = dict[str, Any]
"""`format`, `tensors` by name (`dtype`, `size`, and `parts`: where each lies), and what the writer was given."""


class IndexedWriter(FileSystemWriter):
    """Writes beside the folder; what ends the writing, on the rank that waits for all others, puts it into its place."""

    def __init__(self, folder: Path, content: Mapping[str, Any]) -> None:
        super().__init__(beside(folder, "partial"))
        self._folder, self._content = folder, content

    def finish(self, metadata: Metadata, results: Any) -> None:  # Any: DCP's own lists of results
        super().finish(metadata, results)
        places = {item.index: item.storage_data for found in results for item in found}
        partial = beside(self._folder, "partial")
        index = {"format": FORMAT, **self._content, "tensors": _described(metadata, places)}
        with (partial / INDEX).open("w", encoding="utf-8") as file:
            json.dump(index, file)
            file.flush()
            os.fsync(file.fileno())
        old = beside(self._folder, "old")
        if self._folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            self._folder.rename(old)  # a folder cannot be replaced in one go; `_existing` finds it there
        partial.rename(self._folder)
        shutil.rmtree(old, ignore_errors=True)


def _described(metadata: Metadata, places: Mapping[MetadataIndex, Any]) -> dict[str, Any]:  # Any: plain data
    found: dict[str, Any] = {}
    for name, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata), f"{name} is no tensor"
        parts = []
        for chunk in entry.chunks:
            place = places[MetadataIndex(name, chunk.offsets)]
            parts.append(
                {
                    "at": list(chunk.offsets), "size": list(chunk.sizes),
                    "file": place.relative_path, "start": place.offset, "length": place.length,
                }
            )  # fmt: skip
        dtype = str(entry.properties.dtype).removeprefix("torch.")
        found[name] = {"dtype": dtype, "size": list(entry.size), "parts": parts}
    return found


class IndexedReader(FileSystemReader):
    """Takes its index from our JSON; the tensors themselves DCP reads with `weights_only`."""

    def __init__(self, folder: Path, index: Mapping[str, Any]) -> None:
        super().__init__(_existing(folder))
        self._index = index

    def read_metadata(
        self, *args: Any, **kwargs: Any
    ) -> Metadata:  # Any: DCP's own, which differ between releases
        entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        places = {}
        for name, found in self._index["tensors"].items():
            chunks = [
                ChunkStorageMetadata(torch.Size(p["at"]), torch.Size(p["size"])) for p in found["parts"]
            ]
            properties = TensorProperties(dtype=dtype_of(found["dtype"]))
            entries[name] = TensorStorageMetadata(properties, torch.Size(found["size"]), chunks)
            for part in found["parts"]:
                place = _StorageInfo(Path(part["file"]).name, part["start"], part["length"])
                places[MetadataIndex(name, part["at"])] = place
        return Metadata(entries, storage_data=places, storage_meta=StorageMeta())


def dtype_of(name: str) -> torch.dtype:
    """`float32` -> torch.float32."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise WeightsError(f"a sharded checkpoint holds numbers of type {name!r}, which torch does not know")
    return found


def read_index(folder: Path) -> Index:
    """Of a folder; WeightsError where there is none."""
    path = _existing(folder) / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{folder} is no sharded checkpoint: {path.name} cannot be read ({error}); name the folder of an epoch"
        ) from error
    if index.get("format") != FORMAT:
        raise WeightsError(
            f"{folder} is of format {index.get('format')}, this program reads {FORMAT}: update it"
        )
    found: Index = index
    return found


def _existing(folder: Path) -> Path:
    """The folder, or what it replaced where the replacing was cut off between its two renamings."""
    old = beside(folder, "old")
    return old if not folder.exists() and old.exists() else folder


def beside(folder: Path, ending: str) -> Path:
    """Where a folder is made, or goes, before it is there or gone."""
    return folder.with_name(f".{folder.name}.{ending}")
