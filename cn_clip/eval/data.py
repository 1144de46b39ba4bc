"""Old names: the evaluation data sets and loaders of cn-clip, over `data.store`, `data.captions` and `data.image_folder`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler

from cn_clip.clip import presets, transform
from cn_clip.clip.tokenizer import tokenize_captions
from cn_clip.data.captions import preprocess_text as _preprocess_text
from cn_clip.data.captions import read_captions
from cn_clip.data.image_folder import ImageFolder
from cn_clip.data.store import ImageStore
from cn_clip.errors import DataError

__all__ = [
    "DataInfo",
    "EvalImgDataset",
    "EvalTxtDataset",
    "_preprocess_text",
    "fetch_resolution",
    "get_eval_img_dataset",
    "get_eval_txt_dataset",
    "get_zeroshot_dataset",
]

Item = tuple[int, Tensor]
"""Id, and token ids (L,) or a normalised picture (3, S, S)."""


class Args(Protocol):
    """The flags that are read here; each loader needs its own part of them."""

    text_data: str
    text_batch_size: int
    image_data: str
    img_batch_size: int
    vision_model: str
    datapath: str
    num_workers: int


class EvalTxtDataset(Dataset[Item]):
    """Captions of a JSONL file in its order; `image_ids` are not needed."""

    def __init__(self, jsonl_filename: str, max_txt_length: int = 24) -> None:
        self.texts = [(row.text_id, row.text) for row in read_captions(jsonl_filename, labelled=False)]
        self.max_txt_length = max_txt_length

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, idx: int) -> Item:
        text_id, text = self.texts[idx]
        return text_id, tokenize_captions([_preprocess_text(text)], self.max_txt_length)[0]


class EvalImgDataset(Dataset[Item]):
    """Pictures of an `imgs` store of either format in key order; any index, any number of times, in any worker."""

    def __init__(self, lmdb_imgs: str, resolution: int = 224) -> None:
        self._store = ImageStore(lmdb_imgs)
        self._ids = self._store.ids()
        self.number_images = len(self._ids)
        logging.info(f"The specified LMDB directory contains {self.number_images} images.")
        self.transform = transform.image_transform(resolution)

    def __len__(self) -> int:
        return self.number_images

    def __getitem__(self, idx: int) -> Item:
        image_id = self._ids[idx]
        try:
            picture = transform.open_picture(self._store.read(image_id))
        except DataError as error:
            raise DataError(f"picture {image_id} of {self._store.path}: {error}") from error
        return image_id, self.transform(picture)


class CountedLoader(DataLoader[Any]):  # Any: rows of captions, of pictures, or pictures with labels
    """A loader that says how much it holds."""

    num_samples: int
    num_batches: int


@dataclass
class DataInfo:
    dataloader: CountedLoader
    sampler: Sampler[int] | None


def fetch_resolution(vision_model: str) -> int:
    """Side in pixels of the pictures that an image tower takes."""
    return presets.image_preset(vision_model).image_px


def get_eval_txt_dataset(args: Args, max_txt_length: int = 24) -> DataInfo:
    """Captions of `--text-data` in batches."""
    return _in_order(EvalTxtDataset(args.text_data, max_txt_length=max_txt_length), args.text_batch_size)


def get_eval_img_dataset(args: Args) -> DataInfo:
    """Pictures of `--image-data` in batches."""
    dataset = EvalImgDataset(args.image_data, resolution=fetch_resolution(args.vision_model))
    return _in_order(dataset, args.img_batch_size)


def _in_order(dataset: EvalTxtDataset | EvalImgDataset, batch_size: int) -> DataInfo:
    sampler = SequentialSampler(dataset)
    loader = CountedLoader(
        dataset, batch_size=batch_size, sampler=sampler, pin_memory=torch.cuda.is_available()
    )
    loader.num_samples = len(dataset)
    loader.num_batches = len(loader)
    return DataInfo(loader, sampler)


def get_zeroshot_dataset(args: Args, preprocess_fn: Callable[[Image], Tensor]) -> DataInfo:
    """Pictures of `--datapath` with the number of their class folder; `preprocess_fn` takes an RGB picture."""
    dataset = ImageFolder(args.datapath, _RgbPicture(preprocess_fn))
    loader = CountedLoader(dataset, batch_size=args.img_batch_size, num_workers=args.num_workers)
    loader.num_samples = len(dataset)
    loader.num_batches = len(loader)
    return DataInfo(loader, None)


@dataclass(frozen=True)
class _RgbPicture:
    """A transform of opened pictures as one of encoded ones; a class, so that spawned workers can have it."""

    preprocess_fn: Callable[[Image], Tensor]

    def __call__(self, raw: bytes) -> Tensor:
        return self.preprocess_fn(transform.convert_to_rgb(transform.open_picture(raw)))
