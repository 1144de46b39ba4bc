"""The old data sets and loaders by name: same signatures, same items, same order as the reference's."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from argparse import Namespace
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cn_clip.data.store import SplitWriter
from cn_clip.errors import DataError
from cn_clip.eval import data as eval_data
from cn_clip.training import data as training_data

pytestmark = pytest.mark.parity

Run = Callable[..., "subprocess.CompletedProcess[str]"]
NUM_PICTURES = 7
CAPTIONS = ["“红色”的 Shirt", "一只猫…", "狗 dog", "很长的描述" * 20, "", "éàü 𠀀 ＡＢ", "最后"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`split` and a `valid` copy of it, `texts.jsonl` and `classes/` of the same pictures."""
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    with SplitWriter(folder / "split", "reference") as writer:
        for number in range(NUM_PICTURES):
            picture = random_picture("P" if number == 3 else "RGB")
            writer.add_image(number * 5, picture)
            writer.add_pair(number * 5, 100 + number, CAPTIONS[number])
            path = folder / "classes" / f"{number % 3:03}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture)
    shutil.copytree(folder / "split", folder / "valid")  # the reference cannot open one split twice
    rows = [
        json.dumps({"text_id": 100 + number, "text": text}) for number, text in enumerate([*CAPTIONS, 2024])
    ]
    (folder / "texts.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def random_picture(mode: str) -> bytes:
    file = BytesIO()
    pixels = torch.randint(0, 256, (50, 60, 3), dtype=torch.uint8).numpy()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def training_args(folder: Path, **changes: Any) -> dict[str, Any]:
    args = {
        "train_data": str(folder / "split"),
        "val_data": str(folder / "valid"),
        "batch_size": 3,
        "valid_batch_size": 2,
        "num_workers": 0,
        "valid_num_workers": 0,
        "use_augment": False,
        "vision_model": "RN50",
        "seed": 123,
    }
    return {**args, **changes}


def eval_args(folder: Path) -> dict[str, Any]:
    return {
        "text_data": str(folder / "texts.jsonl"),
        "text_batch_size": 3,
        "image_data": str(folder / "split" / "imgs"),
        "img_batch_size": 2,
        "vision_model": "ViT-B-32",
        "datapath": str(folder / "classes"),
        "num_workers": 0,
    }


REFERENCE_HEAD = """
import inspect, json, random, sys
from argparse import Namespace
import numpy as np, torch
from cn_clip.training import data as training_data
from cn_clip.eval import data as eval_data
from cn_clip.clip import image_transform
folder, output, args = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
"""


def reference_result(
    run_reference: Run, folder: Path, tmp_path: Path, code: str, args: dict[str, Any]
) -> Any:
    """What `result` holds after the code ran beside the reference."""
    output = tmp_path / "result.pt"
    run_reference(REFERENCE_HEAD + code + "\ntorch.save(result, output)", folder, output, json.dumps(args))
    return torch.load(output, weights_only=True)


def assert_same(mine: Any, theirs: Any) -> None:
    if isinstance(mine, torch.Tensor):
        assert torch.equal(mine, theirs)
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            assert_same(one, other)
    else:
        assert mine == theirs


SIGNATURES = """
result = {}
for module in (training_data, eval_data):
    for name in sorted(vars(module)):
        thing = getattr(module, name)
        if callable(thing) and getattr(thing, "__module__", None) == module.__name__:
            for label, function in ((name, thing), (name + ".__init__", thing.__init__ if inspect.isclass(thing) else None)):
                if inspect.isfunction(function):
                    parameters = inspect.signature(function).parameters.values()
                    result[module.__name__ + "." + label] = [[p.name, repr(p.default)] for p in parameters]
"""


def test_signatures(run_reference: Run, folder: Path, tmp_path: Path) -> None:
    import inspect

    theirs = reference_result(run_reference, folder, tmp_path, SIGNATURES, {})
    names = [name for name in theirs if not name.endswith("_convert_to_rgb") and "DataInfo" not in name]
    assert len(names) == 13
    for name in names:
        module = training_data if name.startswith("cn_clip.training") else eval_data
        thing = module
        for part in name.removeprefix(f"{module.__name__}.").split("."):
            thing = getattr(thing, part)
        parameters = inspect.signature(thing).parameters.values()
        assert [[p.name, repr(p.default)] for p in parameters] == theirs[name], name


def test_lmdb_dataset_items(run_reference: Run, folder: Path, tmp_path: Path) -> None:
    code = """
dataset = training_data.LMDBDataset(folder + "/split", split="train", max_txt_length=20, resolution=24)
training_data.pad_dataset(dataset, 4)
result = [[dataset[i] for i in range(len(dataset))], len(dataset), dataset.global_batch_size,
          dataset.number_samples, dataset.number_images]
"""
    theirs = reference_result(run_reference, folder, tmp_path, code, {})
    dataset = training_data.LMDBDataset(
        str(folder / "split"), split="train", max_txt_length=20, resolution=24
    )
    training_data.pad_dataset(dataset, 4)
    mine = [[dataset[index] for index in range(len(dataset))], len(dataset), dataset.global_batch_size]
    assert_same([*mine, dataset.number_samples, dataset.number_images], theirs)


def test_lmdb_dataset_augmented(run_reference: Run, folder: Path, tmp_path: Path) -> None:
    """Equal generators, equal draws, equal pictures."""
    code = """
dataset = training_data.LMDBDataset(folder + "/split", split="train", use_augment=True, resolution=24)
random.seed(1); np.random.seed(1); torch.manual_seed(1)
result = [dataset[i][0] for i in range(2 * len(dataset))]
"""
    theirs = reference_result(run_reference, folder, tmp_path, code, {})
    import random

    import numpy as np

    dataset = training_data.LMDBDataset(str(folder / "split"), split="train", use_augment=True, resolution=24)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert_same([dataset[index][0] for index in range(2 * len(dataset))], theirs)


def test_get_data_order(run_reference: Run, folder: Path, tmp_path: Path) -> None:
    """Sampler order of two epochs, loader sizes, and a batch; validation is always in epoch 0's order."""
    code = """
import torch.distributed as dist
dist.init_process_group("gloo", init_method="file://" + output + ".store", rank=0, world_size=1)
result = []
for epoch in (0, 1):
    data = training_data.get_data(Namespace(**args), epoch_id=epoch, max_txt_length=12)
    for name in ("train", "val"):
        info = data[name]
        result.append([name, list(info.sampler), info.dataloader.num_samples, info.dataloader.num_batches,
                       info.epoch_id, len(info.dataset), next(iter(info.dataloader))])
    data = info = None  # it must close a split before it can open it again
dist.destroy_process_group()
"""
    args = training_args(folder)
    theirs = reference_result(run_reference, folder, tmp_path, code, args)
    mine = []
    for epoch in (0, 1):
        data = training_data.get_data(Namespace(**args), epoch_id=epoch, max_txt_length=12)
        for name in ("train", "val"):
            info = data[name]
            counts = [
                info.dataloader.num_samples,
                info.dataloader.num_batches,
                info.epoch_id,
                len(info.dataset),
            ]
            mine.append([name, list(info.sampler), *counts, next(iter(info.dataloader))])
    assert_same(mine, theirs)
    assert mine[0][1] != mine[2][1] and mine[1][1] == mine[3][1]


def test_get_data_takes_only_what_is_given(folder: Path) -> None:
    args = Namespace(**training_args(folder, val_data=None))
    assert sorted(training_data.get_data(args)) == ["train"]


def test_eval_datasets(run_reference: Run, folder: Path, tmp_path: Path) -> None:
    code = """
texts = eval_data.get_eval_txt_dataset(Namespace(**args), max_txt_length=16)
images = eval_data.get_eval_img_dataset(Namespace(**args))
classes = eval_data.get_zeroshot_dataset(Namespace(**args), image_transform(20))
result = [list(texts.dataloader), texts.dataloader.num_samples, texts.dataloader.num_batches, list(texts.sampler),
          list(images.dataloader), images.dataloader.num_samples, images.dataloader.num_batches, list(images.sampler),
          list(classes.dataloader), classes.sampler is None,
          [eval_data.EvalTxtDataset(args["text_data"])[i] for i in range(8)]]
"""
    args = eval_args(folder)
    theirs = reference_result(run_reference, folder, tmp_path, code, args)
    from cn_clip.clip.transform import image_transform

    texts = eval_data.get_eval_txt_dataset(Namespace(**args), max_txt_length=16)
    images = eval_data.get_eval_img_dataset(Namespace(**args))
    classes = eval_data.get_zeroshot_dataset(Namespace(**args), image_transform(20))
    captions = eval_data.EvalTxtDataset(args["text_data"])
    assert texts.sampler is not None and images.sampler is not None
    mine = [
        *(
            list(texts.dataloader),
            texts.dataloader.num_samples,
            texts.dataloader.num_batches,
            list(texts.sampler),
        ),
        *(
            list(images.dataloader),
            images.dataloader.num_samples,
            images.dataloader.num_batches,
            list(images.sampler),
        ),
        *(list(classes.dataloader), classes.sampler is None),
        [captions[index] for index in range(8)],
    ]
    assert_same(mine, theirs)


def test_fetch_resolution(run_reference: Run, folder: Path, tmp_path: Path) -> None:
    names = ["ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "RN50"]
    code = "result = [[m.fetch_resolution(name) for name in args] for m in (training_data, eval_data)]"
    theirs = reference_result(run_reference, folder, tmp_path, code, names)  # type: ignore[arg-type]
    mine = [[module.fetch_resolution(name) for name in names] for module in (training_data, eval_data)]
    assert mine == theirs


def test_preprocess_text(run_reference: Run, folder: Path, tmp_path: Path) -> None:
    texts = ["“A” ‘B’ İI Σς ẞ", "Ａ…—", ""]
    code = "result = [m._preprocess_text(text) for m in (training_data, eval_data) for text in args]"
    theirs = reference_result(run_reference, folder, tmp_path, code, texts)  # type: ignore[arg-type]
    assert [m._preprocess_text(text) for m in (training_data, eval_data) for text in texts] == theirs


def test_eval_pictures_by_index_and_in_workers(folder: Path) -> None:
    """D-12: the reference walks one cursor, whatever index is asked for."""
    dataset = eval_data.EvalImgDataset(str(folder / "split" / "imgs"), resolution=16)
    in_order = [dataset[index] for index in range(len(dataset))]
    assert [image_id for image_id, _ in in_order] == [0, 10, 15, 20, 25, 30, 5]
    assert_same([dataset[index] for index in (4, 4, 0)], [in_order[4], in_order[4], in_order[0]])
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=2)
    for _ in range(2):
        assert_same([tuple(item) for item in loader], in_order)


def test_a_store_with_a_repeated_id_loses_nothing(folder: Path, tmp_path: Path) -> None:
    """D-12: its `num_images` counts rows, so the last batch of pictures was lost."""
    import lmdb

    picture = base64.b64encode(random_picture("RGB"))
    with lmdb.open(str(tmp_path / "imgs"), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for key in (b"1", b"2", b"3"):
            transaction.put(key, picture)
        transaction.put(b"num_images", b"5")
    dataset = eval_data.EvalImgDataset(str(tmp_path / "imgs"), resolution=16)
    assert [image_id for image_id, _ in dataset] == [1, 2, 3]


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    """D-14: the reference said that None has no attribute tobytes."""
    with SplitWriter(tmp_path / "split") as writer:
        writer.add_pair(44, 1, "x")
    with pytest.raises(DataError, match="no picture with id 44"):
        training_data.LMDBDataset(str(tmp_path / "split"))[0]


def test_an_undecodable_picture_is_named(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "split") as writer:
        writer.add_image(44, b"no picture")
        writer.add_pair(44, 1, "x")
    with pytest.raises(DataError, match=r"pair 0 of .*, picture 44: its 10 bytes"):
        training_data.LMDBDataset(str(tmp_path / "split"))[0]
    with pytest.raises(DataError, match="picture 44 of "):
        eval_data.EvalImgDataset(str(tmp_path / "split" / "imgs"))[0]
