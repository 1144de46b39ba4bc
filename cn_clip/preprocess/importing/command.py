"""`cn-clip import KIND …`: a command for each module of `cn_clip/preprocess/importers/`."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cn_clip.preprocess import importers
from cn_clip.preprocess.importing.flags import add_flags, options_of, with_hyphens
from cn_clip.preprocess.importing.run_options import RunOptions

if TYPE_CHECKING:
    from cn_clip.preprocess.importing.run import Report


def kinds() -> dict[str, Any]:  # Any: modules; their contract is in the folder's docstring
    """Name of each kind -> its module, in the order of names."""
    names = sorted(found.name for found in pkgutil.iter_modules(importers.__path__))
    return {name.replace("_", "-"): importlib.import_module(f"{importers.__name__}.{name}") for name in names}


def parse(
    words: Sequence[str] | None, description: str
) -> tuple[str, Any, RunOptions]:  # Any: options of the kind
    """(kind, its options, how to run)."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="kind", required=True, metavar="KIND", title="kinds")
    modules = kinds()
    for kind, module in modules.items():
        about = (module.__doc__ or "").strip()
        command = commands.add_parser(
            kind,
            help=about.splitlines()[0].replace("%", "%%"),
            description=about.replace("%", "%%"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_flags(command.add_argument_group("input"), module.Options)
        add_flags(command.add_argument_group("output"), RunOptions)
    flags = parser.parse_args(with_hyphens(sys.argv[1:] if words is None else words))
    return flags.kind, options_of(modules[flags.kind].Options, flags), options_of(RunOptions, flags)


def run(kind: str, options: object, run_options: RunOptions) -> Report:
    """One import; the report says what was written."""
    from cn_clip.preprocess.importing.run import run_import

    source = kinds()[kind].build(options)
    return run_import(kind, options, source, run_options)


def describe(report: Report, run_options: RunOptions) -> list[str]:
    """Lines for a person: counts, what was passed over, and the next step."""
    lines = [
        f"{split.name}: {split.num_pictures} pictures, {split.num_texts} captions" for split in report.splits
    ]
    output_dir = run_options.output_dir
    for what, count, more in (
        ("rows read before the interruption", report.num_resumed, ""),
        ("pictures that came again, kept once", report.num_repeats, ""),
        ("bad rows passed over", report.num_bad, f" ({output_dir / 'bad_rows.jsonl'} says which and why)"),
        (
            "broken shards, of which the rest is missing",
            report.num_broken,
            f" of {report.num_parts} (fetch them again)",
        ),
        ("pictures and captions lost with them", report.num_lost, ""),
        ("captions left out with their pictures", report.num_left_out, ""),
    ):
        if count:
            lines.append(f"{what}: {count}{more}")
    lines += [_elsewhere_line(split, count) for split, count in report.num_elsewhere.items()]
    if run_options.to == "lmdb":
        return [*lines, f"Written to {output_dir}, the LMDB to {output_dir / 'lmdb'}"]
    names = ",".join(split.name for split in report.splits)
    lines.append(f"Written to {output_dir}")
    lines.append(f"Next: cn-clip build-lmdb --data_dir {output_dir} --splits {names}")
    return lines


def _elsewhere_line(split: str, count: int) -> str:
    """Other pictures may have the same names, so that nothing is refused."""
    return (
        f"names that {split}_names.jsonl of an earlier import has too: {count} (if they are the same pictures, "
        f"{split} is no longer held out: give --valid-share again, or delete the files of {split})"
    )
