from __future__ import annotations

import io
import json
from pathlib import Path

import lmdb
import pytest
import torch
from PIL import Image

from cn_clip.clip.model import build_model
from cn_clip.clip.presets import text_preset
from cn_clip.data.store import SplitWriter
from cn_clip.errors import ConfigError, DataError, WeightsError
from cn_clip.eval import extract_features
from cn_clip.eval.features.files import read_features

IMAGE_IDS = [2, 10, 1, 33, 100]
KEY_ORDER = [1, 10, 100, 2, 33]
TEXTS = ["一只猫", "“你好” ABC", "一个很长的句子，说的是很多很多不同的事情，没有完", "", "狗"]


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = torch.randint(0, 256, (40, 50, 3), dtype=torch.uint8, generator=torch.manual_seed(seed))
    Image.fromarray(pixels.numpy()).save(stream, "PNG")
    return stream.getvalue()


def write_split(folder: Path, format: str = "v2") -> None:
    with SplitWriter(folder, format) as writer:
        for image_id in IMAGE_IDS:
            writer.add_image(image_id, picture(image_id))
        writer.add_pair(1, 0, "字")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of the tiny towers, as the trainer names things."""
    torch.manual_seed(0)
    model = build_model("tiny-vit", "tiny-bert")
    path = tmp_path_factory.mktemp("weights") / "epoch3.pt"
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "step": 12, "name": "x", "state_dict": state}, path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_split(tmp_path / "lmdb" / "test")
    rows = [{"text_id": 90 - n, "text": text} for n, text in enumerate(TEXTS)]
    (tmp_path / "test_texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def words(data: Path, weights: Path, *more: str) -> list[str]:
    return [
        *(
            "--extract-image-feats",
            "--extract-text-feats",
            "--vision-model=tiny-vit",
            "--text-model=tiny-bert",
        ),
        *(f"--resume={weights}", f"--image-data={data / 'lmdb/test/imgs'}", "--device=cpu"),
        *(f"--text-data={data / 'test_texts.jsonl'}", "--img-batch-size=2", "--text-batch-size=2", *more),
    ]


def features(data: Path) -> tuple[list[int], torch.Tensor, list[int], torch.Tensor]:
    images = read_features(data / "test_imgs.img_feat.jsonl", "image_id")
    return *images, *read_features(data / "test_texts.txt_feat.jsonl", "text_id")


def test_writes_both_files_where_their_names_are_expected(
    data: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extract_features.main(words(data, weights))
    image_ids, images, text_ids, texts = features(data)
    assert image_ids == KEY_ORDER
    assert text_ids == [90, 89, 88, 87, 86]
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(5))
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(5))
    out = capsys.readouterr().out
    assert "Params:\n  context_length: 52\n  debug: False\n  device: cpu\n" in out
    assert f"=> loaded checkpoint '{weights}' (epoch 3 @ 12 steps)\n" in out
    assert out.endswith(f"5 image features are stored in {data / 'test_imgs.img_feat.jsonl'}\nDone!\n")


def test_features_do_not_depend_on_batches_workers_or_store_format(data: Path, weights: Path) -> None:
    extract_features.main(words(data, weights))
    first = features(data)
    write_split(data / "lmdb" / "test", "reference")
    sizes = ("--img-batch-size=3", "--text-batch-size=5", "--num-workers=2")
    extract_features.main(words(data, weights, *sizes))
    second = features(data)
    assert first[0] == second[0] and first[2] == second[2]
    torch.testing.assert_close(first[1], second[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(first[3], second[3], rtol=0, atol=1e-6)


def test_every_picture_is_encoded_though_the_store_counts_more(data: Path, weights: Path) -> None:
    """The reference counts TSV rows, which are more than its keys when an id came twice; it then lost the last batch."""
    write_split(data / "lmdb" / "test", "reference")
    with (
        lmdb.open(str(data / "lmdb" / "test" / "imgs"), map_size=1 << 24) as store,
        store.begin(write=True) as change,
    ):
        change.put(b"num_images", b"9")
    extract_features.main(words(data, weights))
    assert features(data)[0] == KEY_ORDER


@pytest.mark.parametrize(
    ("flag", "least_cosine"),
    [("--transform=fast", 0.99), ("--precision=amp_bf16", 0.999), ("--precision=fp16", 0.999)],
)
def test_quicker_ways_give_nearly_the_same(data: Path, weights: Path, flag: str, least_cosine: float) -> None:
    extract_features.main(words(data, weights))
    exact = features(data)
    extract_features.main(words(data, weights, flag))
    quick = features(data)
    assert (exact[1] * quick[1]).sum(-1).min() > least_cosine
    assert (exact[3] * quick[3]).sum(-1).min() > least_cosine


def test_captions_are_lower_cased_and_their_quotes_straightened(data: Path, weights: Path) -> None:
    rows = [{"text_id": 1, "text": "“ABC”"}, {"text_id": 2, "text": '"abc"'}]
    (data / "test_texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    extract_features.main(words(data, weights))
    _, _, _, texts = features(data)
    torch.testing.assert_close(texts[0], texts[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("length", "line"),
    [
        (
            "20",
            "1 of 5 captions is longer than 20 tokens and was cut: raise --context-length (at most {most})",
        ),
        (
            "4",
            "3 of 5 captions are longer than 4 tokens and were cut: raise --context-length (at most {most})",
        ),
        ("52", None),
    ],
)
def test_captions_that_are_cut_are_counted_in_one_line(
    data: Path, weights: Path, caplog: pytest.LogCaptureFixture, length: str, line: str | None
) -> None:
    extract_features.main(words(data, weights, f"--context-length={length}"))
    most = text_preset("tiny-bert").options["max_positions"]
    assert caplog.messages == ([] if line is None else [line.format(most=most)])


def test_the_longest_context_is_not_to_be_raised(
    data: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    most = text_preset("tiny-bert").options["max_positions"]
    (data / "test_texts.jsonl").write_text(json.dumps({"text_id": 1, "text": "猫" * most}))
    extract_features.main(words(data, weights, f"--context-length={most}"))
    said = f"1 of 1 captions is longer than {most} tokens and was cut: the text tower takes no longer ones"
    assert caplog.messages == [said]


@pytest.mark.parametrize("num_workers", ["0", "1"])
def test_an_unreadable_picture_is_named_and_nothing_is_written(
    data: Path, weights: Path, num_workers: str
) -> None:
    with SplitWriter(data / "lmdb" / "test") as writer:
        writer.add_image(1, picture(1))
        writer.add_image(7, picture(7)[:60])
        writer.add_pair(1, 0, "字")
    with pytest.raises(DataError, match=r"^picture 7 of .*imgs: [^\n]*$"):
        extract_features.main(words(data, weights, f"--num-workers={num_workers}"))
    assert not list(data.glob("*img_feat*")) and not list(data.glob(".*feat*"))


@pytest.mark.parametrize(
    ("more", "kind", "complaint"),
    [
        (["--vision-model=RN50"], WeightsError, "does not fit the model"),
        (["--vision-model=tiny-vti"], ConfigError, "tiny-vit"),
        (["--resume=absent.pt"], WeightsError, "absent.pt"),
        (["--image-data=absent"], DataError, "no folder absent"),
        (["--text-data=absent_texts.jsonl"], DataError, "no file absent_texts.jsonl"),
        (["--text-feat-output-path=no/folder.jsonl"], DataError, "the folder no "),
        (["--img-batch-size=0"], ConfigError, "--img-batch-size is 0"),
        (["--text-batch-size=0"], ConfigError, "--text-batch-size is 0"),
        (["--num-workers=-1"], ConfigError, "--num-workers is -1"),
        (["--context-length=1"], ConfigError, "context"),
    ],
)
def test_bad_flags_are_told_apart(
    data: Path, weights: Path, more: list[str], kind: type[Exception], complaint: str
) -> None:
    with pytest.raises(kind, match=complaint):
        extract_features.main(words(data, weights, *more))


def test_pictures_alone_need_to_know_where_their_features_go(data: Path, weights: Path) -> None:
    with pytest.raises(ConfigError, match="give --image-feat-output-path"):
        extract_features.main(
            ["--extract-image-feats", f"--image-data={data / 'lmdb/test/imgs'}", f"--resume={weights}"]
        )


def test_something_to_do_and_a_checkpoint_are_needed(data: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to do"):
        extract_features.main([])
    with pytest.raises(ConfigError, match="--resume is missing"):
        extract_features.main(["--extract-text-feats"])


def test_weights_with_nan_are_refused(data: Path, weights: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(weights)
    checkpoint["state_dict"]["module.text_projection"][0, 0] = float("nan")
    torch.save(checkpoint, tmp_path / "broken.pt")
    with pytest.raises(WeightsError, match="holds NaN in text_projection"):
        extract_features.main(words(data, tmp_path / "broken.pt"))
