"""`summary.md` of a run, with plots: for a person who was not there. Made from the files of the run's folder alone."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cn_clip.config.load import read_yaml, to_plain
from cn_clip.config.schema import Settings
from cn_clip.errors import CnClipError
from cn_clip.files import write_atomically
from cn_clip.training.build import build_config
from cn_clip.training.run_dir import RESOLVED, SUSPECTS
from cn_clip.training.run_numbers import RunNumbers
from cn_clip.training.summary_plots import draw_plots

logger = logging.getLogger(__name__)

SUMMARY, PLOTS = "summary.md", "summary"
NUM_SUSPECTS = 10


def summarize_run(folder: Path) -> None:
    """At the end of a run: write its summary, or say why there is none; a run does not fail for it."""
    try:
        logger.info("Summary of the run: %s", write_summary(folder))
    except (CnClipError, OSError) as error:
        logger.warning(
            "No summary was written (%s): mend that, then make it with `cn-clip summary %s`.", error, folder
        )


def write_summary(folder: Path) -> Path:
    """Write `summary.md` and the plots of its `summary/` into a run's folder; DataError for a folder without a run."""
    numbers = RunNumbers(folder)
    settings = read_yaml(folder / RESOLVED)
    plots = draw_plots(numbers, folder / PLOTS)
    parts = [
        f"# {_text(settings['run']['name'])}",
        _table(("what", "how much"), _facts(numbers, settings)),
        "## Numbers",
        _table(("number", "best", "at step", "last", "at step"), _best_and_last(numbers)),
        "## Curves",
        "\n\n".join(f"![{plot.title}]({PLOTS}/{plot.file})" for plot in plots) or "None: no step was logged.",
        "## Settings that are not the defaults",
        _table(("setting", "here", "default"), _changed(settings)),
        "## Suspected false negatives",
        _suspects(numbers),
    ]
    path = folder / SUMMARY
    write_atomically(path, ("\n\n".join(parts) + "\n").encode("utf-8", "replace"))
    return path


def _facts(numbers: RunNumbers, settings: Settings) -> Iterable[tuple[str, str]]:
    data = settings["data"]
    yield "trained on", _set(data["train"])
    for name, part in {"": data.get("valid"), **(data.get("valid_sets") or {})}.items():
        if part:
            yield f"validated on {name}".strip(), _set(part)
    yield "model", f"{settings['model']['image']} + {settings['model']['text']}"
    last_plan = numbers.plans[-1] if numbers.plans else {}
    yield "steps", f"{numbers.last_step:,} of {last_plan.get('last_step', numbers.last_step):,}"
    yield "epochs begun", f"{numbers.last_epoch:,}"
    for plan in numbers.plans:
        since = f" (from step {plan['step'] + 1:,} on)" if len(numbers.plans) > 1 else ""
        yield f"pairs{since}", f"{plan['num_pairs']:,} an epoch, {plan['global_batch']:,} a step"
    yield from _costs(numbers)
    skipped = [f"{row['step']:,}" for row in numbers.skipped]
    shown = ", ".join(skipped[:20]) + (", …" if len(skipped) > 20 else "")
    yield "skipped steps", f"{len(skipped)}: {shown}" if skipped else "none"


def _costs(numbers: RunNumbers) -> Iterable[tuple[str, str]]:
    for name, what, show in (
        ("train/elapsed_seconds", "time", _duration),
        ("train/peak_memory_mib", "most memory, of the main rank", lambda mib: f"{mib:,.0f} MiB"),
    ):
        value = numbers.largest(name)
        if value is not None:
            yield what, show(value)
    for name, what, unit in (
        ("train/pairs_per_second", "throughput", "pairs/s"),
        ("train/step_seconds", "time of a step", "s"),
        ("train/data_seconds", "of it, waiting for pairs", "s"),
    ):
        value = numbers.typical(name)
        if value is not None:
            yield f"{what} (median)", f"{value:,.4g} {unit}"


def _best_and_last(numbers: RunNumbers) -> Iterable[tuple[str, ...]]:
    for name, curve in numbers.curves.items():
        if name.startswith("valid/") or name == "train/loss":
            (best, best_step), (last, last_step) = curve.best(name), curve.last
            yield (
                _text(name),
                _value(name, best),
                f"{best_step:,}",
                _value(name, last),
                f"{last_step:,}",
            )


def _value(name: str, value: float) -> str:
    is_share = "recall" in name or name.endswith("accuracy")
    return f"{value * 100:.2f} %" if is_share else f"{value:.4g}"


def _changed(settings: Settings) -> Iterable[tuple[str, str, str]]:
    """Settings of the resolved config that are not what the program would take for this model."""
    plain, defaults = dict(_flat(settings)), dict(_flat(_defaults(settings)))
    for name, value in plain.items():
        if value != defaults.get(name) and not name.startswith(("data.train.", "data.valid")):
            yield _text(name), _text(value), _text(defaults.get(name))


def _defaults(settings: Settings) -> Settings:
    """Settings of a run that says only what it trains on and with; a chosen part has its own defaults."""
    model = {name: settings["model"][name] for name in ("image", "text")}
    least: dict[str, Any] = {"data": {"train": settings["data"]["train"]}}  # Any: plain settings
    defaults = to_plain(build_config(least))
    of_parts = {"loss": {"type": settings["loss"]["type"]}, "model": model}
    for_model = to_plain(build_config(least | of_parts))
    for_model["loss"]["type"] = defaults["loss"]["type"]
    for_model["model"] |= {name: defaults["model"][name] for name in model}
    return for_model


def _flat(settings: Mapping[str, Any], where: str = "") -> Iterable[tuple[str, Any]]:  # Any: plain settings
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


def _suspects(numbers: RunNumbers) -> str:
    if not numbers.suspects:
        return "None were written down."
    worst = numbers.worst_suspects(NUM_SUSPECTS)
    names = list(worst[0])
    rows = ([_text(row.get(name)) for name in names] for row in worst)
    return (
        f"{len(numbers.suspects):,} lines in `{SUSPECTS}`. A picture of the batch was nearer to another pair's caption than to "
        "its own: look whether that caption is right too (`margin`: by how much, in cosine). The worst of the second half of "
        f"the run:\n\n{_table(names, rows)}"
    )


def _set(part: Mapping[str, Any]) -> str:  # Any: plain settings
    return _text(part.get("path") or ", ".join(f"{name}={value}" for name, value in part.items()))


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _text(value: object) -> str:
    """As a cell of a table."""
    if isinstance(value, float):
        return f"{value:.6g}"
    words = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return " ".join(words.replace("|", "\\|").split())


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *rows)]
    return "\n".join(lines)
