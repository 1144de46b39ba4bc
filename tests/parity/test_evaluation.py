"""Top-k, scores and turned annotations beside the reference's own programs, on the same files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cn_clip.eval import (
    evaluation,
    evaluation_tr,
    make_topk_predictions,
    make_topk_predictions_tr,
    transform_ir_annotation_to_tr,
)

pytestmark = pytest.mark.parity
RunReference = Callable[..., subprocess.CompletedProcess[str]]

RUN_ON_CPU = """
import runpy, sys, torch
torch.Tensor.cuda = lambda self, *args, **kwargs: self
name, sys.argv = sys.argv[1], sys.argv[1:]
runpy.run_module("cn_clip.eval." + name, run_name="__main__")
"""


def unit(rows: int, seed: int, width: int = 64) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=torch.manual_seed(seed)), dim=-1)


def sixtyfourths(rows: int, seed: int) -> Tensor:
    """Random features in steps of 1/64: float32 scores are exact, so the reference's order has no rounding in it.

    Its own rounding depends on the block, on copies' places in it and on the CPU.
    """
    return (unit(rows, seed) * 64).round() / 64


def random_features() -> tuple[Tensor, Tensor]:
    return sixtyfourths(60, 0), sixtyfourths(500, 1)


def repeated_features() -> tuple[Tensor, Tensor]:
    """About four copies of each image: exact ties."""
    places = torch.randint(0, 120, (500,), generator=torch.manual_seed(4))
    return sixtyfourths(60, 2), sixtyfourths(120, 3)[places]


def spread_features() -> tuple[Tensor, Tensor]:
    """Features in full precision whose ten best scores, either way, are further apart than float32 rounds."""
    for seed in range(0, 200, 2):
        texts, images = unit(30, seed), unit(200, seed + 1)
        scores = texts @ images.T
        gaps = [way.topk(11).values.diff().abs().min() for way in (scores, scores.T)]
        if min(gaps) > 2e-6:
            return texts, images
    raise AssertionError("no such features among a hundred draws")


def coarse_features() -> tuple[Tensor, Tensor]:
    """Eight values of 1/4 or -1/4 each, 16 wide: scores are exact in float32 and many are equal."""

    def draw(rows: int, seed: int) -> Tensor:
        generator = torch.manual_seed(seed)
        signs = torch.randint(0, 2, (rows, 16), generator=generator) * 2.0 - 1
        return signs / 4

    return draw(60, 5), draw(500, 6)


def write_rows(path: Path, key: str, ids: list[int], features: Tensor) -> None:
    """Feature rows as they are, not scaled to unit length."""
    rows = [json.dumps({key: i, "feature": row}) for i, row in zip(ids, features.tolist(), strict=True)]
    path.write_text("\n".join(rows) + "\n")


@pytest.fixture(
    params=[random_features, repeated_features, coarse_features, spread_features],
    ids=["random", "copies", "ties", "full precision"],
)
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Folder with features, annotations (several captions a picture, some without a right one) and ids out of order."""
    texts, images = request.param()
    text_ids = torch.randperm(1000, generator=torch.manual_seed(7))[: len(texts)].tolist()
    image_ids = torch.randperm(9000, generator=torch.manual_seed(8))[: len(images)].tolist()
    write_rows(tmp_path / "t.jsonl", "text_id", text_ids, texts)
    write_rows(tmp_path / "i.jsonl", "image_id", image_ids, images)
    nearest = (texts @ images.T).argsort(dim=-1, descending=True)
    with (tmp_path / "answers.jsonl").open("w") as stream:
        for n, text_id in enumerate(text_ids):
            right = [image_ids[p] for p in nearest[n, [n % 13, 40 + n]].tolist()] if n % 7 else []
            stream.write(json.dumps({"text_id": text_id, "text": "字", "image_ids": right}) + "\n")
    return tmp_path


def search_words(files: Path, output: str, *more: str) -> list[str]:
    named = [f"--image-feats={files / 'i.jsonl'}", f"--text-feats={files / 't.jsonl'}"]
    return [*named, f"--output={files / output}", *more]


@pytest.mark.parametrize("more", [(), ("--eval-batch-size=77", "--top-k=600")], ids=str)
@pytest.mark.parametrize("door", [make_topk_predictions, make_topk_predictions_tr], ids=["t2i", "i2t"])
def test_predictions_are_equal_to_the_byte(
    request: pytest.FixtureRequest,
    files: Path,
    run_reference: RunReference,
    door: object,
    more: tuple[str, ...],
) -> None:
    if more and "full precision" in request.node.name:
        pytest.skip("only its ten best are further apart than the reference rounds")
    name = door.__name__.rsplit(".", 1)[-1]
    theirs = run_reference(RUN_ON_CPU, name, *search_words(files, "theirs.jsonl", *more))
    assert theirs.returncode == 0, theirs.stderr
    door.main(search_words(files, "ours.jsonl", *more))
    assert (files / "ours.jsonl").read_bytes() == (files / "theirs.jsonl").read_bytes()


def test_score_files_are_equal_to_the_byte(files: Path, run_reference: RunReference) -> None:
    transform_ir_annotation_to_tr.main(["--input", str(files / "answers.jsonl")])
    ours_turned = (files / "answers.tr.jsonl").read_bytes()
    theirs = run_reference(RUN_ON_CPU, "transform_ir_annotation_to_tr", "--input", files / "answers.jsonl")
    assert theirs.returncode == 0, theirs.stderr
    assert ours_turned == (files / "answers.tr.jsonl").read_bytes()

    make_topk_predictions.main(search_words(files, "found.jsonl"))
    make_topk_predictions_tr.main(search_words(files, "found.tr.jsonl"))
    for door, answers, found in (
        (evaluation, "answers.jsonl", "found.jsonl"),
        (evaluation_tr, "answers.tr.jsonl", "found.tr.jsonl"),
    ):
        name = door.__name__.rsplit(".", 1)[-1]
        words = [str(files / answers), str(files / found)]
        theirs = run_reference(RUN_ON_CPU, name, *words, files / "theirs.json")
        assert theirs.returncode == 0, theirs.stderr
        door.main([*words, str(files / "ours.json")])
        assert (files / "ours.json").read_bytes() == (files / "theirs.json").read_bytes()
        assert json.loads((files / "ours.json").read_text())["success"]


COMPARE_HELPERS = """
import json, sys
from cn_clip.eval import evaluation as e
answers, found, output = sys.argv[1:]
reference = e.read_reference(answers)
e.report_score(1 / 3, 2 / 7, 0.9, output)
print(json.dumps([e.compute_score(answers, found), list(reference.items()),
                  list(e.read_submission(found, reference, 10).items())]))
"""


def test_helpers_return_the_same(files: Path, run_reference: RunReference) -> None:
    make_topk_predictions.main(search_words(files, "found.jsonl"))
    answers, found = str(files / "answers.jsonl"), str(files / "found.jsonl")
    theirs = run_reference(COMPARE_HELPERS, answers, found, files / "theirs.json")
    reference = evaluation.read_reference(answers)
    ours = [
        evaluation.compute_score(answers, found),
        list(reference.items()),
        list(evaluation.read_submission(found, reference, 10).items()),
    ]
    assert json.loads(json.dumps(ours)) == json.loads(theirs.stdout)
    evaluation.report_score(1 / 3, 2 / 7, 0.9, str(files / "ours.json"))
    assert (files / "ours.json").read_bytes() == (files / "theirs.json").read_bytes()


@pytest.mark.parametrize("fault", ["missing", "short", "twice", "text"])
def test_what_the_reference_refuses_we_refuse(files: Path, run_reference: RunReference, fault: str) -> None:
    make_topk_predictions.main(search_words(files, "found.jsonl"))
    rows = [json.loads(line) for line in (files / "found.jsonl").read_text().splitlines()]
    last = rows.pop()
    faulty = {
        "missing": [],
        "short": [{**last, "image_ids": last["image_ids"][:9]}],
        "twice": [{**last, "image_ids": last["image_ids"][:9] + last["image_ids"][:1]}],
        "text": [{**last, "image_ids": [str(image_id) for image_id in last["image_ids"]]}],
    }[fault]
    (files / "found.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + faulty))
    words = [str(files / "answers.jsonl"), str(files / "found.jsonl")]
    run_reference(RUN_ON_CPU, "evaluation", *words, files / "theirs.json")
    door = [sys.executable, evaluation.__file__, *words, str(files / "ours.json")]
    assert subprocess.run(door, capture_output=True).returncode == 2
    ours, theirs = (json.loads((files / name).read_text()) for name in ("ours.json", "theirs.json"))
    assert list(ours) == list(theirs)
    assert {**ours, "errorDetail": "", "errorMsg": ""} == {**theirs, "errorDetail": "", "errorMsg": ""}
