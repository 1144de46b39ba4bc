"""From items to rows of the files: ids given, splits chosen, captions joined to their pictures."""

from __future__ import annotations

from cn_clip.data.captions import MAX_ID
from cn_clip.errors import DataError
from cn_clip.preprocess.importing.items import BadItem, FileContent, Item, Picture, Source, Text
from cn_clip.preprocess.importing.outputs import Outputs
from cn_clip.preprocess.importing.pictures import Prepared
from cn_clip.preprocess.importing.progress import (
    BAD,
    ELSEWHERE,
    NO_ID,
    WRITTEN,
    PictureRecord,
    Position,
    Progress,
)

_MAX_ID_CHARS = 20
"""`int` of thousands of digits raises; and messages show no more of an id."""


class RowWriter:
    """Writes items one by one; `position` counts what was written. The first bad one is a DataError that ends in `stops`, if given."""

    def __init__(
        self, source: Source, files: Outputs, progress: Progress, position: Position, *, stops: str | None
    ) -> None:
        self._source = source
        self._files = files
        self._progress = progress
        self._position = position
        self._stops = stops
        self._under_way: set[str] = set()

    def is_done(self, picture: Picture) -> bool:
        """Whether this picture need not be read: the same file was, or is about to be."""
        # another key, an id or a name from a column, may stand before two files, of which one is wrong
        if not self._source.names_are_files or not isinstance(picture.content, FileContent):
            return False
        if picture.key in self._under_way:
            return True
        found = self._progress.find(picture.key)
        if found is not None and found.state in (WRITTEN, BAD):
            return True
        self._under_way.add(picture.key)
        return False

    def add(self, item: Item, prepared: Prepared | None) -> None:
        match item:
            case Picture():
                if prepared is not None:
                    self._under_way.discard(item.key)
                    self._add_picture(item, prepared)
            case Text():
                self._add_text(item)
            case BadItem():
                self._pass_over(item.where, item.reason)
                self._position.num_broken += item.is_broken_part
                self._position.num_uncounted += not item.is_counted
                self._position.num_lost += item.num_lost

    def _add_picture(self, picture: Picture, prepared: Prepared) -> None:
        found = self._progress.find(picture.key)
        if found is not None and found.state == WRITTEN:
            self._add_again(picture, prepared, found)
            return
        fault = prepared.fault or self._bad_id(picture.key)
        if fault is not None:
            self._pass_over(picture.where, fault)
            # an id that it had stays its own, in the map of the split that it was in
            image_id, split = (NO_ID, None) if found is None else (found.image_id, found.split)
            split = split if split in self._source.splits else None
            self._progress.record(picture.key, PictureRecord(image_id, split, BAD, None))
            return
        name = picture.name or picture.key
        split = picture.split or self._chosen_split(name, prepared.digest)
        image_id = self._image_id(picture.key, found)
        self._files.add_image(split, image_id, prepared.encoded)
        if self._source.has_names and not (self._source.own_ids and name == picture.key):
            self._files.add_name(split, image_id, name)
        self._progress.record(picture.key, PictureRecord(image_id, split, WRITTEN, prepared.digest))
        if found is not None and found.state == ELSEWHERE and found.split is not None:
            elsewhere = self._position.num_elsewhere
            elsewhere[found.split] = elsewhere.get(found.split, 0) + 1
        self._position.pictures[split] = self._position.pictures.get(split, 0) + 1

    def _add_again(self, picture: Picture, prepared: Prepared, found: PictureRecord) -> None:
        if prepared.digest == found.digest:
            self._position.num_repeats += 1
        else:
            reason = f"a picture named {picture.name or picture.key!r} was given before with other content"
            self._pass_over(picture.where, f"{reason}; give every picture a name of its own")

    def _bad_id(self, key: str) -> str | None:
        if not self._source.own_ids:
            return None
        is_short = len(key) <= _MAX_ID_CHARS and key.removeprefix("-").isdecimal()
        if is_short and str(int(key)) == key and abs(int(key)) <= MAX_ID:
            return None
        return _no_id(key)

    def _chosen_split(self, name: str, digest: bytes) -> str:
        if self._source.choice is None:
            raise ValueError(f"the source gives no split for {name}, and no choice of one")
        return self._source.choice.of(name, digest)

    def _image_id(self, key: str, found: PictureRecord | None) -> int:
        if self._source.own_ids:
            return int(key)
        if found is not None and found.image_id != NO_ID:
            return found.image_id
        self._position.next_id += 1
        return self._position.next_id - 1

    def _add_text(self, text: Text) -> None:
        fault = _fault_of(text)
        if fault is not None:
            self._pass_over(text.where, fault)
            return
        image_ids: dict[str, list[int]] = {} if text.split is None else {text.split: []}
        for key in dict.fromkeys(text.keys):
            found = self._progress.find(key)
            if found is None or found.state not in (WRITTEN, BAD):
                self._pass_over(text.where, f"there is no picture {_shown(key)}")
                return
            if found.state == WRITTEN and found.split is not None:
                image_ids.setdefault(found.split, []).append(found.image_id)
        if text.keys and not any(image_ids.values()):
            self._position.num_left_out += 1
            return
        text_id = self._position.num_texts if text.text_id is None else text.text_id
        for split, ids in image_ids.items():
            if ids or not text.keys:
                self._files.add_text(split, text_id, text.text, ids)
                self._position.texts[split] = self._position.texts.get(split, 0) + 1
        self._position.num_texts += 1

    def _pass_over(self, where: str, reason: str) -> None:
        if self._stops is not None:
            raise DataError(f"{where}: {reason}; {self._stops}")
        self._position.num_bad += 1
        self._files.add_bad_row(where, reason)


def _fault_of(text: Text) -> str | None:
    if text.text_id is not None and (type(text.text_id) is not int or abs(text.text_id) > MAX_ID):
        return _no_id(text.text_id)
    try:
        text.text.encode()
    except UnicodeEncodeError as error:  # an escape in JSON can be half a character
        return f"its caption is no text ({error})"
    return None


def _no_id(value: int | str) -> str:
    return f"the id {_shown(value)} is not a whole number of 64 bits"


def _shown(value: int | str) -> str:
    try:
        shown = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "it has"
    return shown if len(shown) <= _MAX_ID_CHARS * 2 else f"{shown[: _MAX_ID_CHARS * 2]}…"
