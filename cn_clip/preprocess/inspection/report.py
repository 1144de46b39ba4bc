"""What an inspection found: frozen, plain, the one thing that the text, the JSON and the page are made from.

Captions in it are fit for showing: cut to 200 characters, whatever cannot be printed written as `\\u001b`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Where values lie."""

    mean: float
    minimum: float
    median: float
    p90: float
    p99: float
    maximum: float


@dataclass(frozen=True, kw_only=True)
class Histogram:
    edges: tuple[float, ...]
    """One more than counts; the last bar holds its right edge too."""
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Counts:
    num_pictures: int
    num_captions: int
    """Texts under a text id of their own."""
    num_pairs: int
    captions_per_picture: Spread | None
    """Of pictures that have any."""
    pictures_per_caption: Spread | None
    num_missing_pictures: int
    """Picture ids that captions name and that are not there."""
    missing_pictures: tuple[int, ...]
    """The first of them."""
    num_pairs_without_picture: int
    num_unused_pictures: int
    """Pictures that no caption names."""
    unused_pictures: tuple[int, ...]
    num_captions_without_ids: int
    """They make no pair."""
    num_repeated_pairs: int
    """Same picture, same text, again."""
    num_reused_text_ids: int
    """Text ids that stand for several texts, which `targets: positives` takes for the same."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One picture or row that cannot be used as it is."""

    where: str
    """Picture id, or file and row."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class Faults:
    count: int
    examples: tuple[Fault, ...]
    """The first ones."""


@dataclass(frozen=True, kw_only=True)
class PictureFindings:
    num_read: int
    undecodable: Faults
    """No pixels come out, so training stops there."""
    unreadable: Faults
    """Bytes that do not match their digest, rows that are no picture, ids given twice with different pictures."""
    flawed: Faults
    """Pixels come out, but the decoder remarked on damage."""
    num_repeated_rows: int
    """Rows of a TSV that give a picture again, byte for byte."""
    formats: dict[str, int]
    modes: dict[str, int]
    total_bytes: int
    bytes: Spread | None
    bytes_histogram: Histogram | None
    shorter_px: Spread | None
    shorter_histogram: Histogram | None
    longer_px: Spread | None
    aspect: Spread | None
    """Width divided by height."""
    aspect_histogram: Histogram | None
    num_small: int
    """Shorter side under 224 px."""
    num_large: int
    """Longer side over 1,000 px."""
    num_plain: int
    """Next to no contrast: blank, or a placeholder."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    context_length: int
    num_cut: int
    """Captions that lose tokens."""
    share: float


@dataclass(frozen=True, kw_only=True)
class OddCharacter:
    shown: str
    name: str
    """In the Unicode tables."""
    count: int
    example: str
    """A caption that holds it."""


@dataclass(frozen=True, kw_only=True)
class CaptionFindings:
    tokens: Spread | None
    """Of a caption, [CLS] and [SEP] included."""
    tokens_histogram: Histogram | None
    cuts: tuple[Cut, ...]
    num_unknown: int
    """Captions with a word that becomes [UNK]."""
    unknown: tuple[OddCharacter, ...]
    num_invisible: int
    """Captions with control, format or replacement characters, which the tokenizer drops."""
    invisible: tuple[OddCharacter, ...]
    num_empty: int
    """Captions without any token."""
    empty: tuple[str, ...]
    """Where they stand."""
    num_short: int
    """Captions of one or two tokens beside [CLS] and [SEP]."""
    short: tuple[str, ...]
    bad_rows: Faults
    """Lines of the JSONL that are no caption, or stored pairs that cannot be read."""
    num_stale_tokens: int | None
    """Captions whose cached tokens are not what this tokenizer gives; None without a cache to compare."""


@dataclass(frozen=True, kw_only=True)
class PictureGroup:
    size: int
    image_ids: tuple[int, ...]
    """The first of them."""


@dataclass(frozen=True, kw_only=True)
class CaptionGroup:
    caption: str
    size: int
    """Captions with this text."""
    image_ids: tuple[int, ...]
    """The first of their pictures."""


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Things that are there more than once."""

    num_groups: int
    num_extra: int
    """What would go if each group kept one."""
    largest: tuple[PictureGroup, ...] | tuple[CaptionGroup, ...]


@dataclass(frozen=True, kw_only=True)
class BatchRisk:
    """What `targets: diagonal` meets in a global batch of this many pairs, on average over all batches."""

    batch: int
    false_per_pair: float
    """Other pairs that show the same picture or text."""
    share_of_negatives: float
    share_of_pairs: float
    """Pairs that meet at least one."""


@dataclass(frozen=True, kw_only=True)
class FalseNegatives:
    num_pairs: int
    """Of which the batches are drawn."""
    risks: tuple[BatchRisk, ...]
    """Same picture id, text id or caption text."""
    same_picture_id: float
    """Other pairs with the same picture id, on average."""
    same_text_id: float
    same_text: float
    unseen_risks: tuple[BatchRisk, ...]
    """Same picture byte for byte under another id: no mode of the loss can see these. Empty of a sample."""
    largest_unique_batch: int
    """No larger global batch of `sampler: unique` can hold all pairs: pairs / most frequent picture or text."""
    advised_unique_batch: int
    """Up to about this one, an epoch of it leaves out at most 1 % of the pairs; 1 where no size tried does."""


@dataclass(frozen=True, kw_only=True)
class SharedPicture:
    image_id: int
    other_id: int
    """In the other split."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What this split shares with another one."""

    other: str
    """Its name."""
    other_path: str
    num_equal: int
    """Pictures of this split that the other has byte for byte."""
    equal: tuple[SharedPicture, ...]
    num_near: int
    """Further pictures that look like one of the other."""
    near: tuple[SharedPicture, ...]
    num_captions: int
    """Captions of this split whose text the other has."""
    captions: tuple[str, ...]
    share_of_pictures: float
    """Of the other split's pictures, those that are here too, equal or near."""
    share_of_captions: float


@dataclass(frozen=True, kw_only=True)
class Advice:
    level: Literal["problem", "advice", "remark"]
    """A problem would stop a training or spoil its data; `--strict` fails on it."""
    reason: str
    setting: str = ""
    """What to write or run."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """A picture drawn at random."""

    image_id: int
    width: int
    height: int
    captions: tuple[str, ...]
    num_captions: int


@dataclass(frozen=True, kw_only=True)
class Effort:
    seconds: float
    picture_cpu_seconds: float
    """Of all workers."""
    pictures_per_cpu_second: float
    workers: int


@dataclass(frozen=True, kw_only=True)
class SplitInspection:
    name: str
    path: str
    """LMDB folder, or the TSV up to its `_imgs.tsv`."""
    kind: str
    """What the split is stored as."""
    num_sampled: int | None
    """Pairs looked at, where not all were."""
    counts: Counts
    pictures: PictureFindings
    captions: CaptionFindings
    equal_pictures: Duplicates
    near_pictures: Duplicates
    """Different files that look the same."""
    equal_captions: Duplicates
    """Same prepared text under several text ids."""
    false_negatives: FalseNegatives | None
    overlap: Overlap | None
    advice: tuple[Advice, ...]
    examples: tuple[Example, ...]
    effort: Effort

    @property
    def has_problems(self) -> bool:
        return any(advice.level == "problem" for advice in self.advice)


@dataclass(frozen=True, kw_only=True)
class InspectionReport:
    data: str
    near_distance: int
    """Bits of 64 in which near pictures may differ."""
    seed: int
    version: str
    """Of cn_clip."""
    splits: tuple[SplitInspection, ...]

    @property
    def has_problems(self) -> bool:
        return any(split.has_problems for split in self.splits)
