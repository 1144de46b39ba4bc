"""The summary of a run, from real tiny runs, and from rows written by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cn_clip.errors import DataError
from cn_clip.training import write_summary as door
from cn_clip.training.run_numbers import Curve, RunNumbers
from tests.training.conftest import Train

PNG = b"\x89PNG\r\n\x1a\n"


def table(text: str, heading: str) -> dict[str, list[str]]:
    """First cell -> the others, of the first table behind a heading."""
    lines = text[text.index(heading) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        rows[cells[0]] = cells[1:]
    return rows


def test_a_run_ends_with_a_summary_that_a_person_can_read(train: Train, tiny_split: Path) -> None:
    muge = f"--set=data.valid_sets={{muge: {{type: lmdb_pairs, path: {tiny_split}}}}}"
    words = ("--max-epochs=2", f"--val-data={tiny_split}", muge, "--lr=0.002", "--set=log.summary=true")
    run = train(*words)
    text = (run / "summary.md").read_text(encoding="utf-8")
    facts = table(text, "# run")
    assert facts["trained on"] == facts["validated on"] == facts["validated on muge"] == [str(tiny_split)]
    assert facts["model"] == ["tiny-vit + tiny-bert"]
    assert facts["steps"] == ["12 of 12"] and facts["epochs begun"] == ["2"]
    assert facts["pairs"] == ["21 an epoch, 4 a step"]
    assert facts["skipped steps"] == ["none"]
    assert {"time", "most memory, of the main rank", "throughput (median)"} <= facts.keys()
    numbers = table(text, "## Numbers")
    assert {
        "train/loss",
        "valid/loss",
        "valid/mean_recall",
        "valid/muge/text_to_image_recall@5",
    } <= numbers.keys()
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert numbers["valid/mean_recall"][2:] == [f"{last['mean_recall'] * 100:.2f} %", "12"]
    plots = [line for line in text.splitlines() if line.startswith("![")]
    for name in ("loss", "recall", "learning_rate", "throughput", "gradient_norm", "logit_scale"):
        assert any(f"(summary/{name}.png)" in line for line in plots)
        assert (run / "summary" / f"{name}.png").read_bytes().startswith(PNG)
    settings = table(text, "## Settings")
    assert settings["optim.lr"] == ["0.002", "0.0005"] and settings["model.image"] == ["tiny-vit", "ViT-B-16"]
    assert not {"optim.eps", "optim.beta2", "loss.type", "seed"} & settings.keys()
    assert "Summary of the run: " in next(run.glob("out_*.log")).read_text(encoding="utf-8")


def test_a_resumed_run_has_a_whole_summary_and_the_command_makes_it_again(
    train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--max-steps=3", "--set=log.summary=true")
    run = train("--max-steps=9", "--set=log.summary=true")
    first = (run / "summary.md").read_text(encoding="utf-8")
    assert table(first, "# run")["steps"] == ["9 of 9"]
    assert RunNumbers(run).curves["train/loss"].steps == list(range(1, 10))
    (run / "summary.md").unlink()
    shutil.rmtree(run / "summary")
    door.main([str(run)])
    assert f"Written: {run / 'summary.md'}" in capsys.readouterr().out
    assert (run / "summary.md").read_text(encoding="utf-8") == first
    assert (run / "summary" / "loss.png").is_file()


def test_a_summary_that_cannot_be_written_does_not_fail_the_run(train: Train, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary").write_text("in the way")
    run = train("--max-steps=2", "--set=log.summary=true")
    assert "No summary was written" in next(run.glob("out_*.log")).read_text(encoding="utf-8")


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="metrics.jsonl"):
        door.main([str(tmp_path)])


def test_the_best_value_is_the_smallest_of_a_loss_and_the_largest_of_a_recall() -> None:
    curve = Curve([1, 2, 3, 4], [5.0, 2.0, 2.0, 5.0])
    assert curve.best("valid/loss") == curve.best("valid/muge/text_to_image_median_rank") == (2.0, 2)
    assert curve.best("valid/mean_recall") == curve.best("valid/text_to_image_mrr") == (5.0, 1)


def test_long_curves_are_thinned_to_means() -> None:
    thin = Curve(list(range(1, 1001)), [float(n % 2) for n in range(1000)]).thinned(100)
    assert len(thin.steps) == 100 and thin.steps[-1] == 1000
    assert set(thin.values) == {0.5}


def test_skipped_steps_and_the_worst_suspects_are_shown(tmp_path: Path) -> None:
    settings = {
        "run": {"name": "by hand"},
        "data": {"train": {"type": "lmdb_pairs", "path": "/d|e"}},
        "model": {"image": "tiny-vit", "text": "tiny-bert"},
        "loss": {"type": "contrastive"},
    }
    (tmp_path / "resolved.yaml").write_text(json.dumps(settings))
    rows = [{"kind": "skipped", "step": step, "epoch": 1} for step in (7, 9)]
    rows += [{"kind": "train", "step": 20, "epoch": 1, "loss": 0.5, "gradient_norm": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    suspects = [
        {"step": step, "pair_id": pair, "other_pair_id": other, "margin": margin}
        for step, pair, other, margin in ((2, 1, 2, 0.9), (12, 3, 4, 0.2), (14, 4, 3, 0.5), (20, 5, 6, 0.3))
    ]
    (tmp_path / "suspects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in suspects))
    door.main([str(tmp_path)])
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    facts = table(text, "# by hand")
    assert facts["skipped steps"] == ["2: 7, 9"] and facts["trained on"] == ["/d\\|e"]
    assert table(text, "## Suspected") == {"14": ["4", "3", "0.5"], "20": ["5", "6", "0.3"]}
    assert "4 lines in `suspects.jsonl`" in text
    assert "gradient_norm.png" not in text
