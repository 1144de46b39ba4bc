"""A folder that is no split: what the sentence says to do, which is the same for every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from cn_clip.data.store import ImageStore, SplitWriter, open_split
from cn_clip.errors import DataError
from cn_clip.preprocess.importing.outputs import WORK_FOLDER


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def sentence(path: Path) -> str:
    with pytest.raises(DataError) as found:
        open_split(path)
    assert "\n" not in str(found.value)
    return str(found.value)


@pytest.mark.parametrize("names", [["a.jpg"], ["shoes/1.PNG", "notes.txt"]])
def test_pictures(tmp_path: Path, names: list[str]) -> None:
    touch(*(tmp_path / "pics" / name for name in names))
    said = sentence(tmp_path / "pics")
    assert said.endswith(
        f"it holds pictures: bring them in with cn-clip import folder --image-dir {tmp_path}/pics"
    )
    assert "again" not in said


def test_tars(tmp_path: Path) -> None:
    touch(
        tmp_path / "laion" / "00000.tar", tmp_path / "laion" / "00000.parquet", tmp_path / "laion" / "a.jpg"
    )
    for given in (tmp_path / "laion", tmp_path / "laion" / "00000.tar"):
        said = sentence(given)
        assert "data.train.type=webdataset" in said and f"cn-clip import webdataset --tars {given}" in said


def test_parquet(tmp_path: Path) -> None:
    touch(tmp_path / "hub" / "train-00000-of-00002.parquet")
    assert f"cn-clip import parquet --files {tmp_path}/hub" in sentence(tmp_path / "hub")


def test_files_that_are_not_built_yet(tmp_path: Path) -> None:
    touch(
        *(tmp_path / f"{name}_{kind}" for name in ("valid", "train") for kind in ("imgs.tsv", "texts.jsonl"))
    )
    build = f"build it with build_lmdb_dataset.py --data_dir {tmp_path} --splits"
    assert sentence(tmp_path).endswith(f"{build} train,valid")
    # the name of the split, the folder it will get, and its file
    for path in (tmp_path / "train", tmp_path / "lmdb" / "train", tmp_path / "train_imgs.tsv"):
        assert sentence(path).endswith(f"{build} train"), path


def test_an_unfinished_import(tmp_path: Path) -> None:
    touch(tmp_path / "mine" / WORK_FOLDER / "train_imgs.tsv")
    assert sentence(tmp_path / "mine").endswith(
        "an import into it was not finished: run the same cn-clip import again"
    )


def test_splits_nearby(tmp_path: Path) -> None:
    for name in ("train", "valid"):
        with SplitWriter(tmp_path / "lmdb" / name):
            pass
    touch(tmp_path / "train_imgs.tsv", tmp_path / "a.jpg")
    lmdb = tmp_path / "lmdb"
    assert sentence(tmp_path).endswith(f"give {lmdb}/train, or another of its splits (train, valid)")
    assert sentence(lmdb).endswith(f"give one of its splits (train, valid), for example {lmdb}/train")
    assert sentence(tmp_path / "valid").endswith(f"give {lmdb}/valid")
    assert sentence(lmdb / "trian").endswith(
        f"give one of the splits beside it (train, valid), for example {lmdb}/train"
    )
    assert sentence(lmdb / "train" / "imgs").endswith(f"give {lmdb}/train, which holds both")


def test_half_a_split_is_built_again_and_an_empty_folder_is_not(tmp_path: Path) -> None:
    (tmp_path / "half" / "pairs").mkdir(parents=True)
    assert sentence(tmp_path / "half").endswith(
        "has no imgs/ folder: build it again with build_lmdb_dataset.py"
    )
    (tmp_path / "empty").mkdir()
    assert sentence(tmp_path / "empty").endswith(
        "give the split's LMDB folder, for example DATAPATH/lmdb/train"
    )
    assert sentence(tmp_path / "nowhere" / "at_all").endswith("for example DATAPATH/lmdb/train")


def test_the_pictures_of_a_split_are_asked_for_in_the_same_words(tmp_path: Path) -> None:
    """As feature extraction does: it reads the imgs folder."""
    with SplitWriter(tmp_path / "lmdb" / "train"):
        pass
    touch(tmp_path / "pics" / "a.jpg")
    images = tmp_path / "lmdb" / "train" / "imgs"
    for given in (tmp_path, tmp_path / "lmdb", tmp_path / "lmdb" / "train"):
        with pytest.raises(DataError, match=rf"no data\.mdb.*give .*{images}"):
            ImageStore(given)
    with pytest.raises(DataError, match="cn-clip import folder --image-dir"):
        ImageStore(tmp_path / "pics")


def test_a_link_to_itself_is_passed_over(tmp_path: Path) -> None:
    touch(tmp_path / "pics" / "shoes" / "a.jpg")
    (tmp_path / "pics" / "again").symlink_to(tmp_path / "pics" / "again")
    assert "cn-clip import folder" in sentence(tmp_path / "pics")
