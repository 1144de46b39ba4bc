"""From the installed drawings to the files: what is in training, what is held out, what is asked.

`train`: all of OpenMoji, and the Twemoji families not held out. `test` and `valid`: the Twemoji drawings of
held-out families. Skin tones are in no split: they add many near copies of few drawings, and training did not gain.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools.emoji_quickstart.classes import CLASSES, find_class
from data_tools.emoji_quickstart.drawings import Drawing, draw_all
from data_tools.emoji_quickstart.families import split_families
from data_tools.emoji_quickstart.files import Picture, write_split, write_zeroshot
from data_tools.emoji_quickstart.names import read_captions, read_groups, require_packages

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Options:
    output_dir: Path
    image_px: int = 72
    """Side of the pictures; Twemoji comes at 72."""
    test_share: float = 0.2
    """Share of the Twemoji drawings that only the test sees."""
    valid_share: float = 0.04
    """The same, for watching the loss of a run."""
    class_caption_share: float = 0.3
    """Share of the training pictures whose class name is a second caption, so that zero-shot classes are words seen."""
    seed: int = 0
    limit: int | None = None
    """Take only so many emoji, spread over all of them; for tests."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was written: pictures and texts by split, and zero-shot pictures."""

    num_pictures: dict[str, int]
    num_texts: dict[str, int]
    num_zeroshot_pictures: int


def build_emoji_pairs(options: Options) -> Summary:
    """Write all splits and the zero-shot folder."""
    require_packages()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    pictures = split_pictures(draw_all(options.image_px, _limited_codes(options.limit)), options)
    num_texts: dict[str, int] = {}
    for split in SPLITS:
        first_text_id = sum(num_texts.values())
        num_texts[split] = write_split(options.output_dir, split, pictures[split], first_text_id)
    return Summary(
        num_pictures={split: len(pictures[split]) for split in SPLITS},
        num_texts=num_texts,
        num_zeroshot_pictures=write_zeroshot(
            options.output_dir / "zeroshot", pictures["test"], list(CLASSES)
        ),
    )


def _limited_codes(limit: int | None) -> list[str] | None:
    codes = list(read_captions())
    return None if limit is None else codes[:: max(1, len(codes) // limit)][:limit]


def split_pictures(drawings: Sequence[Drawing], options: Options) -> dict[str, list[Picture]]:
    """Split → its pictures; image ids count on through all drawings."""
    twemoji = [drawing for drawing in drawings if drawing.artist == "twemoji"]
    shares = {"test": options.test_share, "valid": options.valid_share}
    held_out = dict(
        zip((d.codes[0] for d in twemoji), split_families(twemoji, shares, options.seed), strict=True)
    )
    groups = read_groups()
    pictures: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    for image_id, drawing in enumerate(drawings):
        split = held_out[drawing.codes[0]] if drawing.artist == "twemoji" else "train"
        pictures[split].append(_picture(image_id, drawing, groups))
    pictures["train"] = _name_classes(pictures["train"], options)
    return pictures


def _name_classes(pictures: Sequence[Picture], options: Options) -> list[Picture]:
    """The pictures, a share of them with their class name as one more caption."""
    draw = random.Random(options.seed)
    chosen = [draw.random() < options.class_caption_share for _ in pictures]
    return [
        replace(picture, captions=(*picture.captions, picture.class_name))
        if is_chosen and picture.class_name is not None
        else picture
        for picture, is_chosen in zip(pictures, chosen, strict=True)
    ]


def _picture(image_id: int, drawing: Drawing, groups: dict[str, str]) -> Picture:
    return Picture(
        image_id=image_id,
        png=drawing.png,
        captions=drawing.captions,
        class_name=find_class(groups.get(drawing.codes[0], "")),
    )
