"""Captions that stand beside several pictures: recall under each answer to them; and 4 x 64 pairs against 256.

    python tests/benchmarks/repeated_captions.py --work FOLDER [--seeds 3] [--steps 240] [--minutes 8]

The quickstart's emoji, its towers and settings; but every training picture of a class has the class's name as a second caption
(`--share`), so that of 256 pairs about 110 are of 20 captions, and each name of a thing stands beside both artists' drawings.
Compared, all else equal: `loss.targets` diagonal, positives and mask, and diagonal in batches of `data.sampler=unique`.
Recall is the run's own validation after its last step, on drawings never seen: `names` asks for things by name, `names and classes`
for classes too, which are right for many pictures. Told are mean and standard deviation over the seeds.

Then the loss of each step with `train.accumulate=4`, 64 pairs each, against 256 at once, in fp32: with a ViT, dropout and FLIP masks,
where both are the same step; and with the quickstart's ResNet, whose BatchNorm sees 64 pictures or 256.

Each run is a folder in FOLDER, and one that is done is not done again; `--minutes` begins no further run after so long.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sides import ROOT

sys.path.insert(0, str(ROOT))

Settings = dict[str, Any]
"""Plain settings of a run."""

ANSWERS: dict[str, Settings] = {
    "diagonal": {"loss": {"targets": "diagonal"}},
    "positives": {"loss": {"targets": "positives"}},
    "mask": {"loss": {"targets": "mask"}},
    "unique": {"loss": {"targets": "diagonal"}, "data": {"sampler": "unique"}},
}
SETS = {"names": "names", "many": "names and classes"}
NUMBERS = {
    "mean_recall": "mean recall", "text_to_image_recall@1": "text to image R@1", "text_to_image_recall@10": "R@10",
    "image_to_text_recall@1": "image to text R@1", "image_to_text_recall@10": "R@10",
}  # fmt: skip
VIT = {
    "embed_dim": 256,
    "image_resolution": 48,
    "vision_layers": 4,
    "vision_width": 128,
    "vision_patch_size": 12,
}
DROPPING = {"text_attention_probs_dropout_prob": 0.1, "text_hidden_dropout_prob": 0.1}


@dataclass(frozen=True)
class Run:
    name: str
    settings: Settings


def main() -> None:
    flags = parse()
    flags.work.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + 60 * flags.minutes
    make_data(flags)
    answers, curves = answer_runs(flags), curve_runs(flags)
    for run in [*answers, *curves]:
        if time.monotonic() < deadline:
            train(run, flags)
    report_answers(answers, flags)
    report_curves(curves, flags)


def parse() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder of data and runs; kept")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the training pictures that tell their class"
    )
    parser.add_argument("--minutes", type=float, default=25, help="after which no further run begins")
    parser.add_argument("--threads", type=int, default=2)
    flags = parser.parse_args()
    flags.work = flags.work.resolve()
    return flags


def make_data(flags: Namespace) -> None:
    """LMDBs `train`, `names` and `many`, with one seed of families, whole or not there."""
    from data_tools.emoji_quickstart.build import Options, split_pictures
    from data_tools.emoji_quickstart.drawings import draw_all
    from data_tools.emoji_quickstart.files import write_split

    done = flags.work / "data.json"
    made_with = {"share": flags.share}
    if done.exists():
        if json.loads(done.read_text()) != made_with:
            sys.exit(f"{flags.work} holds data made with {done.read_text()}: give another --work")
        return
    data = flags.work / "data"
    data.mkdir(exist_ok=True)
    options = Options(output_dir=data, class_caption_share=flags.share)
    pictures = split_pictures(draw_all(options.image_px), options)
    named = [
        replace(picture, captions=(*picture.captions, picture.class_name)) if picture.class_name else picture
        for picture in pictures["test"]
    ]
    first_text_id = 0
    for split, chosen in {"train": pictures["train"], "names": pictures["test"], "many": named}.items():
        first_text_id += write_split(data, split, chosen, first_text_id)
    shutil.rmtree(flags.work / "lmdb", ignore_errors=True)
    words = [f"--data_dir={data}", "--splits=train,names,many", f"--lmdb_dir={flags.work / 'lmdb'}"]
    door("preprocess/build_lmdb_dataset.py", *words, threads=flags.threads)
    done.write_text(json.dumps(made_with))


def answer_runs(flags: Namespace) -> list[Run]:
    """Every answer under each seed, seed by seed."""
    last = {"validate": {"every_steps": flags.steps}}
    return [
        Run(f"{name}-{flags.steps}-{seed}", settings | last | {"run": {"seed": seed}})
        for seed in range(1, flags.seeds + 1)
        for name, settings in ANSWERS.items()
    ]


def curve_runs(flags: Namespace) -> list[Run]:
    """The same pairs at once and in four, with either kind of tower."""
    bert = json.loads((ROOT / "cn_clip/clip/model_configs/quickstart-bert.json").read_text())
    presets = {"vit": VIT, "bert": bert | DROPPING}
    for name, preset in presets.items():
        (flags.work / f"{name}.json").write_text(json.dumps(preset))
    image, text = (str(flags.work / f"{name}.json") for name in presets)
    towers = {
        "vit": {"image": image, "text": text, "mask_ratio": 0.25, "channels_last": False},
        "resnet": {},
    }
    return [
        Run(
            f"{kind}-{flags.steps}-{accumulate}x{256 // accumulate}",
            {
                "model": model,
                "log": {"every_steps": 1},
                "loss": {"targets": "positives"},
                "train": {
                    "batch_size": 256 // accumulate,
                    "accumulate": accumulate,
                    "precision": "fp32",
                },
                "validate": {"every_steps": flags.steps},
            },
        )
        for kind, model in towers.items()
        for accumulate in (1, 4)
    ]


def train(run: Run, flags: Namespace) -> None:
    """Train, from its beginning, a run that is not done."""
    if last_row(run, flags) is not None:
        return
    shutil.rmtree(flags.work / run.name, ignore_errors=True)
    lmdb = flags.work / "lmdb"
    settings: Settings = {
        "base": str(ROOT / "configs/quickstart.yaml"),
        "run": {"name": run.name, "logs_dir": str(flags.work)},
        "data": {
            "train": {"type": "lmdb_pairs", "path": str(lmdb / "train")},
            "valid": {"type": "lmdb_pairs", "path": str(lmdb / "names")},
            "valid_sets": {"many": {"type": "lmdb_pairs", "path": str(lmdb / "many")}},
        },
        "train": {"max_steps": flags.steps},
        "checkpoint": {"enabled": False},
        "log": {"summary": False, "tensorboard": False},
    }
    for section, values in run.settings.items():
        settings[section] = settings.get(section, {}) | values
    config = flags.work / f"{run.name}.yaml"
    config.write_text(json.dumps(settings, indent=1, ensure_ascii=False))  # every JSON is YAML
    began = time.monotonic()
    door("training/main.py", f"--config={config}", threads=flags.threads)
    print(f"{run.name}: {time.monotonic() - began:.0f} s", flush=True)


def door(name: str, *words: str, threads: int) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "cn_clip" / name), *words],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])


def rows(run: Run, flags: Namespace) -> list[Mapping[str, Any]]:
    path = flags.work / run.name / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def last_row(run: Run, flags: Namespace) -> Mapping[str, Any] | None:
    """What validation found after the last step; None for a run that is not done."""
    found = [row for row in rows(run, flags) if row["kind"] == "valid" and row["step"] == flags.steps]
    return found[-1] if found else None


def report_answers(runs: list[Run], flags: Namespace) -> None:
    results = {run.name: last_row(run, flags) for run in runs}
    for prefix, title in SETS.items():
        print(
            f"\n{title}: %, mean and standard deviation over the seeds; * mean of the differences to diagonal"
        )
        for answer in ANSWERS:
            found = {
                seed: numbers
                for seed in range(1, flags.seeds + 1)
                if (numbers := results[f"{answer}-{flags.steps}-{seed}"]) is not None
            }
            if found:
                base = {seed: results[f"diagonal-{flags.steps}-{seed}"] for seed in found}
                print(f"  {answer:10} {len(found)} seeds  " + cells(found, base, prefix), flush=True)


def cells(
    found: Mapping[int, Mapping[str, Any]], base: Mapping[int, Mapping[str, Any] | None], prefix: str
) -> str:
    said = []
    for number, title in NUMBERS.items():
        name = number if prefix == "names" else f"{prefix}/{number}"
        values = [100 * row[name] for row in found.values()]
        differences = [
            100 * (row[name] - other[name]) for seed, row in found.items() if (other := base[seed])
        ]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = statistics.mean(differences) if differences else float("nan")
        said.append(f"{title} {statistics.mean(values):5.2f} ± {spread:4.2f} ({mean:+5.2f}*)")
    return "  ".join(said)


def report_curves(runs: list[Run], flags: Namespace) -> None:
    for whole, cut in (runs[:2], runs[2:]):
        if last_row(whole, flags) is None or last_row(cut, flags) is None:
            continue
        losses = [[row["loss"] for row in rows(run, flags) if row["kind"] == "train"] for run in (whole, cut)]
        apart = [abs(one - other) for one, other in zip(*losses, strict=True)]
        recalls = [100 * (last_row(run, flags) or {})["mean_recall"] for run in (whole, cut)]
        print(
            f"\n{cut.name} against {whole.name}: losses differ by {max(apart[:20]):.1e} at most in the first 20 steps, "
            f"{max(apart):.1e} in all {len(apart)} (mean {statistics.mean(apart):.1e}; the loss goes from {losses[0][0]:.3f} to "
            f"{losses[0][-1]:.3f}); mean recall {recalls[1]:.2f} against {recalls[0]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
