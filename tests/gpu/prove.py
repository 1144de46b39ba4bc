"""All checks of `tests/gpu.sh`, one after the other: a line each, and a report to paste."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from cn_clip.files import write_atomically
from cn_clip.parallel.ranks import pick_device
from gpu.kernels import check_attention, check_mask_cost
from gpu.loss_memory import check_loss_memory
from gpu.loss_scale import check_loss_falls, check_overflow
from gpu.machine import check_versions
from gpu.outcome import Outcome
from gpu.resuming import check_resume
from gpu.several_ranks import check_fsdp_run, check_ranks, check_zero
from gpu.step_time import check_compile, check_step_time
from gpu.workplace import Workplace

CHECKS: Mapping[str, Callable[[Workplace], list[Outcome]]] = {
    "machine": check_versions,
    "loss_memory": check_loss_memory,  # first of those that take memory: on the CPU the peak of the process is read
    "overflow": check_overflow,
    "attention": check_attention,
    "mask_cost": check_mask_cost,
    "step_time": check_step_time,
    "compile": check_compile,
    "learns": check_loss_falls,
    "resume": check_resume,
    "ranks": check_ranks,
    "fsdp": check_fsdp_run,
    "zero": check_zero,
}


def prove(place: Workplace, names: list[str], report: Path) -> bool:
    """Make the checks, print each line and keep the report; whether none failed."""
    outcomes: list[Outcome] = []
    began = time.perf_counter()
    for name in names:
        try:
            found = CHECKS[name](place)
        except (
            Exception
        ) as error:  # whatever a GPU machine brings up: the other checks still say what they find
            traceback.print_exc()
            found = [
                Outcome(
                    name,
                    "FAIL",
                    f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                )
            ]
        for outcome in found:
            print(f"{outcome.verdict} [{place.device.type}] {outcome.check}: {outcome.says}", flush=True)
        outcomes += found
        write_atomically(report, report_of(outcomes, place, time.perf_counter() - began).encode())
        if place.is_cuda:
            torch.cuda.empty_cache()
    return all(outcome.verdict != "FAIL" for outcome in outcomes)


def report_of(outcomes: list[Outcome], place: Workplace, seconds: float) -> str:
    """Markdown: a table of all checks, then the tables of single ones."""
    counts = {verdict: sum(o.verdict == verdict for o in outcomes) for verdict in ("PASS", "FAIL", "SKIP")}
    size = "tiny towers" if place.is_tiny else "ViT-B-16 + RoBERTa-base, 64 pairs"
    lines = [
        "# tests/gpu.sh",
        "",
        f"Device: `{place.device.type}`, {size}. {', '.join(f'{n} {verdict}' for verdict, n in counts.items())}. "
        f"{seconds:.0f} s.",
        "",
        *_table([["check", "", "what was found"], *([o.check, o.verdict, o.says] for o in outcomes)]),
    ]
    for outcome in outcomes:
        if outcome.table:
            lines += ["", f"## {outcome.check}", "", *_table(outcome.table)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *body = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def main() -> None:
    flags = _parser().parse_args()
    device = pick_device(flags.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.disable(logging.INFO)  # the runs' own lines; warnings stay
    is_tiny = flags.size == "tiny" or (flags.size == "auto" and device.type != "cuda")
    with tempfile.TemporaryDirectory(prefix="cn_clip_gpu_") as folder:
        held = prove(Workplace(device, is_tiny, Path(folder)), flags.only, flags.report)
    print(f"report: {flags.report.resolve()}")
    sys.exit(0 if held else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bash tests/gpu.sh", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--size",
        choices=("auto", "tiny", "real"),
        default="auto",
        help="towers of the timed steps (default: real on CUDA)",
    )
    add("--device", default="auto", help="auto, cuda, cuda:1 or cpu (default: %(default)s)")
    add("--report", type=Path, default=Path("gpu_report.md"), help="file to write (default: %(default)s)")
    add("--only", type=_names, default=list(CHECKS), metavar="CHECK,...", help=f"some of {', '.join(CHECKS)}")
    return parser


def _names(text: str) -> list[str]:
    unknown = [name for name in text.split(",") if name not in CHECKS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no check {unknown[0]!r}; choose from {', '.join(CHECKS)}")
    return text.split(",")


if __name__ == "__main__":
    main()
