"""A report as lines for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from cn_clip.preprocess.inspection.advice import count, percent, size
from cn_clip.preprocess.inspection.report import (
    CaptionFindings,
    Faults,
    InspectionReport,
    OddCharacter,
    Overlap,
    PictureFindings,
    SplitInspection,
)

_WIDTH = 100
_FAULTS_SHOWN = 3
_ODD_SHOWN = 8
_MARKS = {"problem": "PROBLEM", "advice": "advice", "remark": "remark"}


def summarize(report: InspectionReport) -> str:
    return "\n\n".join("\n".join(_lines(split)) for split in report.splits)


def _lines(split: SplitInspection) -> Iterator[str]:
    counts = split.counts
    yield f"{split.name} ({split.kind})"
    if split.num_sampled is not None:
        yield _row("sample", f"the pictures of {count(split.num_sampled, 'random pair')}")
    per = counts.captions_per_picture
    yield _row(
        "counts",
        f"{count(counts.num_pictures, 'picture')}, {count(counts.num_captions, 'caption')}, "
        f"{count(counts.num_pairs, 'pair')}"
        + (f"; captions per picture {per.mean:.2f}, at most {per.maximum:,.0f}" if per else ""),
    )
    yield from _picture_lines(split.pictures)
    yield from _caption_lines(split.captions)
    for name, what, found in (
        ("equal pictures", "file", split.equal_pictures),
        ("near pictures", "picture", split.near_pictures),
        ("equal captions", "caption", split.equal_captions),
    ):
        if found.num_groups:
            yield _row(
                name, f"{count(found.num_extra, what)} too many, in {count(found.num_groups, 'group')}"
            )
    yield from _batch_lines(split)
    if split.overlap is not None:
        yield _row(f"in {split.overlap.other} too", _overlap(split.overlap))
    effort = split.effort
    yield _row(
        "speed",
        f"{effort.seconds:.1f} s; {effort.pictures_per_cpu_second:,.0f} pictures per second and core, "
        f"{count(effort.workers, 'worker')}",
    )
    for advice in split.advice:
        yield textwrap.fill(
            advice.reason,
            _WIDTH,
            initial_indent=f"  {_MARKS[advice.level]:8}",
            subsequent_indent=" " * 10,
            break_long_words=False,
            break_on_hyphens=False,
        )
        if advice.setting:
            yield f"{' ' * 12}{advice.setting}"


def _row(name: str, text: str) -> str:
    return f"  {name:18}{text}"


def _picture_lines(pictures: PictureFindings) -> Iterator[str]:
    shorter, aspect, num_bytes = pictures.shorter_px, pictures.aspect, pictures.bytes
    if shorter is not None and aspect is not None and num_bytes is not None:
        yield _row("formats", _tally(pictures.formats) + "; " + _tally(pictures.modes))
        yield _row(
            "shorter side",
            f"{shorter.minimum:,.0f} to {shorter.maximum:,.0f} px, median {shorter.median:,.0f}; "
            f"{pictures.num_small:,} under 224; width / height {aspect.minimum:.2f} to {aspect.maximum:.2f}",
        )
        yield _row(
            "files",
            f"{size(pictures.total_bytes)}, median {size(num_bytes.median)}, p99 {size(num_bytes.p99)}",
        )
    for name, faults in (
        ("undecodable", pictures.undecodable),
        ("unreadable", pictures.unreadable),
        ("flawed", pictures.flawed),
    ):
        yield from _fault_lines(name, faults)


def _fault_lines(name: str, faults: Faults) -> Iterator[str]:
    if not faults.count:
        return
    yield _row(name, f"{faults.count:,}")
    for fault in faults.examples[:_FAULTS_SHOWN]:
        yield f"      {fault.where}: {fault.reason}"
    if faults.count > _FAULTS_SHOWN:
        yield f"      and {faults.count - _FAULTS_SHOWN:,} more"


def _tally(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items())


def _caption_lines(captions: CaptionFindings) -> Iterator[str]:
    tokens = captions.tokens
    if tokens is not None:
        yield _row(
            "tokens",
            f"median {tokens.median:.0f}, p90 {tokens.p90:.0f}, p99 {tokens.p99:.0f}, longest {tokens.maximum:.0f}",
        )
        shown = (f"{cut.context_length}: {percent(cut.share)}" for cut in captions.cuts)
        yield _row("cut at length", ", ".join(shown))
    for name, number, odd in (
        ("[UNK]", captions.num_unknown, captions.unknown),
        ("invisible", captions.num_invisible, captions.invisible),
    ):
        if number:
            yield _row(name, f"in {count(number, 'caption')}: {_odd(odd)}")
    for name, number in (("empty captions", captions.num_empty), ("very short", captions.num_short)):
        if number:
            yield _row(name, f"{number:,}")
    yield from _fault_lines("bad captions", captions.bad_rows)


def _odd(characters: Iterable[OddCharacter]) -> str:
    shown = list(characters)
    text = ", ".join(f"{odd.shown} {odd.count:,}" for odd in shown[:_ODD_SHOWN])
    return f"{text}, ..." if len(shown) > _ODD_SHOWN else text


def _batch_lines(split: SplitInspection) -> Iterator[str]:
    found = split.false_negatives
    if found is None:
        return
    for number, risk in enumerate(found.risks):
        if not number and split.num_sampled is not None:
            yield _row("batches", f"of {count(found.num_pairs, 'pair')}")
        yield _row(
            "" if number else "false negatives",
            f"batch {risk.batch:,}: {percent(risk.share_of_pairs)} of the pairs meet one, "
            f"{risk.false_per_pair:.3g} each",
        )


def _overlap(overlap: Overlap) -> str:
    return (
        f"{overlap.num_equal:,} equal and {overlap.num_near:,} near pictures ({percent(overlap.share_of_pictures)} of its "
        f"pictures), {overlap.num_captions:,} captions ({percent(overlap.share_of_captions)} of its captions)"
    )
