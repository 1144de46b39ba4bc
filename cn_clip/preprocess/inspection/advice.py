"""What to do about what was seen: each with its reason and the exact setting."""

from __future__ import annotations

from collections.abc import Iterator

from cn_clip.clip.tokenizer import CONTEXT_LENGTH
from cn_clip.preprocess.inspection.findings import LARGE_PX, SMALL_PX
from cn_clip.preprocess.inspection.report import Advice, BatchRisk, FalseNegatives, SplitInspection

_MUCH = 0.01
"""Share of captions cut, or of pairs with a false negative, that is worth a change."""
_SMALLER_PX = 512  # twice the square of most towers, so that augmentation has room
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


def advise(split: SplitInspection, why_rebuild: str | None) -> tuple[Advice, ...]:
    """Problems first, then what to set, then what is only worth knowing."""
    found = [
        *_picture_problems(split),
        *_pair_problems(split),
        *_overlap(split),
        *_context_length(split),
        *_batches(split),
        *_rebuild(split, why_rebuild),
        *_sizes(split),
        *_remarks(split),
    ]
    order = ("problem", "advice", "remark")
    return tuple(sorted(found, key=lambda advice: order.index(advice.level)))


def _problem(reason: str, setting: str = "") -> Advice:
    return Advice(level="problem", reason=reason, setting=setting)


def _advice(reason: str, setting: str = "") -> Advice:
    return Advice(level="advice", reason=reason, setting=setting)


def _remark(reason: str, setting: str = "") -> Advice:
    return Advice(level="remark", reason=reason, setting=setting)


def _picture_problems(split: SplitInspection) -> Iterator[Advice]:
    pictures = split.pictures
    if pictures.undecodable.count:
        yield _problem(
            f"{count(pictures.undecodable.count, 'picture')} not decodable, and training stops at the first: mend or "
            "remove, or let training pass over what is bad",
            "data.bad_pairs=skip",
        )
    if pictures.unreadable.count:
        yield _problem(
            f"{count(pictures.unreadable.count, 'picture')} not readable as stored (damaged, no base64, or an id given "
            "twice): mend the source and build the split again"
        )


def _pair_problems(split: SplitInspection) -> Iterator[Advice]:
    counts = split.counts
    if counts.num_missing_pictures:
        yield _problem(
            f"{count(counts.num_pairs_without_picture, 'pair')} without a picture: the captions name "
            f"{count(counts.num_missing_pictures, 'id')} that the split does not have; add the pictures, or take the ids "
            "out of the captions"
        )
    if split.captions.bad_rows.count:
        yield _problem(
            f"{count(split.captions.bad_rows.count, 'caption')} not readable: mend the rows in the list"
        )
    if not counts.num_pairs and not _is_unlabelled(split):
        yield _problem("there are no pairs: no caption names a picture")
    if split.captions.num_stale_tokens:
        yield _problem(
            f"the cached tokens of {count(split.captions.num_stale_tokens, 'caption')} are not those of its text",
            "cn-clip build-lmdb",
        )


def _is_unlabelled(split: SplitInspection) -> bool:
    """A split to predict for, whose captions name no pictures; an LMDB does not keep them, so its name tells."""
    counts = split.counts
    is_test = split.kind.startswith("LMDB") and split.name.endswith("test")
    return not counts.num_pairs and (
        counts.num_captions_without_ids > 0 or (is_test and counts.num_pictures > 0)
    )


def _overlap(split: SplitInspection) -> Iterator[Advice]:
    overlap = split.overlap
    if overlap is not None and overlap.num_equal + overlap.num_near:
        yield _advice(
            f"{percent(overlap.share_of_pictures)} of the pictures of {overlap.other} are here too "
            f"({overlap.num_equal:,} equal, {overlap.num_near:,} near): a score on {overlap.other} is then too good; "
            "take them out of one of the two"
        )


def _context_length(split: SplitInspection) -> Iterator[Advice]:
    captions = split.captions
    cuts = {cut.context_length: cut for cut in captions.cuts}
    default = cuts.get(CONTEXT_LENGTH)
    if default is None or captions.tokens is None:
        return
    if default.share <= _MUCH:
        if default.num_cut:
            yield _remark(
                f"{count(default.num_cut, 'caption')} longer than {CONTEXT_LENGTH} tokens: the end is cut off"
            )
        return
    longer = [cut for length, cut in sorted(cuts.items()) if length > CONTEXT_LENGTH]
    enough = next((cut for cut in longer if cut.share <= _MUCH), longer[-1] if longer else default)
    yield _advice(
        f"{CONTEXT_LENGTH} tokens cut {percent(default.share)} of the captions, {enough.context_length} cut "
        f"{percent(enough.share)}; short captions cost no more, since padding is trimmed",
        f"data.context_length={enough.context_length}",
    )


def _batches(split: SplitInspection) -> Iterator[Advice]:
    risks = split.false_negatives
    if risks is None or not risks.risks:
        return
    bad = next((risk for risk in risks.risks if risk.share_of_pairs > _MUCH), None)
    unseen = next((risk for risk in risks.unseen_risks if risk.share_of_pairs > _MUCH), None)
    if bad is None and unseen is None:
        yield _remark(
            f"up to a global batch of {risks.risks[-1].batch:,} fewer than {percent(_MUCH)} of the pairs meet their own "
            "picture or caption in another pair",
            "loss.targets=diagonal",
        )
    if bad is not None:
        yield _advice(
            f"{_meets(bad, 'their own picture or caption in another pair')}, which targets: diagonal scores as wrong and targets: positives as right",
            "loss.targets=positives",
        )
        yield _unique(risks, bad.batch)
    if unseen is not None:
        yield _advice(
            f"{_meets(unseen, 'the same picture file under another picture id')}, which no setting can tell: give equal "
            "pictures one id"
        )


def _unique(risks: FalseNegatives, batch: int) -> Advice:
    """About the sampler that keeps such pairs apart, where they meet from this global batch on."""
    advised, bound = risks.advised_unique_batch, risks.largest_unique_batch
    above = (
        f"above it an epoch leaves pairs out, others in each epoch, and over {bound:,} no batch can hold all"
        if advised < bound
        else "a larger batch cannot hold all pairs"
    )
    if advised >= batch:
        return _advice(
            f"or such pairs never meet: this works up to a global batch of about {advised:,}; {above}",
            "data.sampler=unique",
        )
    return _remark(f"data.sampler=unique works only up to a global batch of about {advised:,}; {above}")


def _meets(risk: BatchRisk, what: str) -> str:
    return f"in a global batch of {risk.batch:,}, {percent(risk.share_of_pairs)} of the pairs meet {what}"


def _rebuild(split: SplitInspection, why: str | None) -> Iterator[Advice]:
    if why is not None:
        yield _advice(f"build the split again: {why}", "cn-clip build-lmdb")


def _sizes(split: SplitInspection) -> Iterator[Advice]:
    longer, pictures = split.pictures.longer_px, split.pictures
    if longer is not None and longer.median > LARGE_PX:
        yield _advice(
            f"half of the pictures are longer than {longer.median:,.0f} px, but a tower sees {SMALL_PX} to 448: smaller "
            f"files are read and decoded faster ({size(pictures.total_bytes)} now)",
            f"cn-clip import ... --max-px {_SMALLER_PX}",
        )
    num_seen = sum(pictures.formats.values())
    if pictures.num_small > num_seen / 10:
        yield _remark(
            f"{percent(pictures.num_small / num_seen)} of the pictures are smaller than {SMALL_PX} px and are blown up"
        )


def _remarks(split: SplitInspection) -> Iterator[Advice]:
    counts, pictures, captions = split.counts, split.pictures, split.captions
    transparent = sum(number for mode, number in pictures.modes.items() if mode in _TRANSPARENT)
    is_unlabelled = _is_unlabelled(split)
    if is_unlabelled:
        yield _remark(
            "no caption names a picture: features can be extracted, but there is nothing to train on"
        )
    for number, noun, text in (
        (
            pictures.flawed.count,
            "picture",
            "decoded with a warning of damage: training takes it, a build with --decode refuses it",
        ),
        (pictures.num_plain, "picture", "with next to no contrast: blank, or a placeholder of a missing one"),
        (transparent, "picture", "with transparency, which training drops: put a background behind it first"),
        (split.equal_pictures.num_extra, "picture", "given again under another id, byte for byte"),
        (split.near_pictures.num_extra, "picture", "much like another one"),
        (0 if is_unlabelled else counts.num_unused_pictures, "picture", "without caption, never trained on"),
        (counts.num_captions_without_ids, "caption", "without image ids, in no pair"),
        (counts.num_repeated_pairs, "pair", "with the picture and text of another"),
        (
            counts.num_reused_text_ids,
            "text id",
            "with several texts, which targets: positives takes for equal",
        ),
        (captions.num_empty, "caption", "without any token"),
        (captions.num_unknown, "caption", "with something the vocabulary lacks: it becomes [UNK]"),
        (captions.num_invisible, "caption", "with control or invisible characters, which are dropped"),
    ):
        if number:
            yield _remark(f"{count(number, noun)} {text}")


def count(number: int, noun: str) -> str:
    """`1 picture`, `2,000 pictures`."""
    return f"{number:,} {noun}{'s'[: number != 1]}"


def percent(share: float) -> str:
    """`12.3 %`; a share that is not nothing never shows as 0."""
    if 0 < share < 0.0005:
        return "under 0.1 %"
    return f"{share * 100:.1f} %"


def size(num_bytes: float) -> str:
    """`1.4 GB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} bytes" if unit == "bytes" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
