"""A Hugging Face data set that `save_to_disk` wrote: a folder of Arrow files, or of folders, one for each split.

Taken as given, from the layout of `datasets`: state.json lists the files under "_data_files"; dataset_dict.json lists the splits of a
folder of splits; an Arrow file is an IPC stream; an image is {bytes, path}. The library itself is not needed. `validation` is imported
as `valid`. A picture is named FILE#ROW (SPLIT/FILE#ROW), unless --name-column gives a column of names. Needs `pip install
cn_clip[import]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.importing.arrow_rows import ColumnFlags, arrow, arrow_items, choose_columns
from cn_clip.preprocess.importing.items import Item, Part, Picture, Source, Text, require_folder
from cn_clip.preprocess.importing.own_splits import OUR_NAMES, OwnSplits
from cn_clip.preprocess.importing.split_choice import SplitChoice


@dataclass(frozen=True, kw_only=True)
class Options(ColumnFlags, OwnSplits, SplitChoice):
    data_dir: Path
    """the folder that was saved"""


def build(options: Options) -> Source:
    arrow("pyarrow")
    require_folder(options.data_dir, "--data-dir", "a saved data set")
    listed = options.data_dir / "dataset_dict.json"
    if not listed.is_file():
        if options.splits:
            raise ConfigError(
                f"--splits: {options.data_dir} has no splits; name the one to write with --split"
            )
        parts = _parts(options.data_dir, options, None)
        return Source(parts=parts, splits=options.names(), choice=options)
    if options.valid_share:
        raise ConfigError(f"--valid-share: {options.data_dir} has splits of its own; choose with --splits")
    names = _read_list(listed, "splits")
    # both, where a set has valid or val as well as validation
    folders = {
        (name if OUR_NAMES.get(name, "") in names else OUR_NAMES.get(name, name)): name for name in names
    }
    splits = options.chosen(list(folders), options.data_dir)
    parts = [part for split in splits for part in _parts(options.data_dir / folders[split], options, split)]
    return Source(parts=parts, splits=splits)


def _parts(folder: Path, options: Options, split: str | None) -> list[Part]:
    state = folder / "state.json"
    if not state.is_file():
        raise DataError(f"{folder} has no state.json: give the folder that save_to_disk wrote")
    names = _read_list(state, "_data_files")
    paths = [folder / name for name in names]
    for path in paths:
        if not path.is_file():
            raise DataError(f"{state} names {path.name}, which is not beside it: copy the whole folder again")
    return [Part(path.name, partial(_items, path, options, split), (path,)) for path in paths]


def _read_list(path: Path, field: str) -> list[str]:
    """Names in a list of names, or of {"filename": name}."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))[field]
        names = [value["filename"] if isinstance(value, dict) else value for value in values]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"{path} cannot be read ({error}): save the data set again") from error
    for name in names:
        if not isinstance(name, str) or name != Path(name).name:
            raise DataError(f"{path}, field {field}: {name!r} is no name of a file beside it")
    return names


def _items(path: Path, options: Options, split: str | None) -> Iterator[Item]:
    pyarrow = arrow("pyarrow")
    try:
        # mapped, not read: of a batch only the rows that are asked for come into memory
        with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as stream:
            columns = choose_columns(stream.schema.names, options, path)
            for item in arrow_items(stream, columns, path, options.image_dir):
                yield item if split is None else _in_split(item, split)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a whole Arrow file ({' '.join(str(error).split())})") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _in_split(item: Item, split: str) -> Item:
    """The files of all splits have the same names."""
    match item:
        case Picture():
            return replace(item, key=f"{split}/{item.key}", split=split)
        case Text():
            return replace(item, keys=tuple(f"{split}/{key}" for key in item.keys))
    return item
