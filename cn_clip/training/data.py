"""Old names: the training data set and loaders of cn-clip, over `data.store` and `clip.transform`.

The trainer itself reads through `data.loader`; these are for programs that import them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import ceil
from typing import Protocol

from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from torchvision.transforms import Compose

from cn_clip.clip import presets, transform
from cn_clip.clip.augment import autoaugment
from cn_clip.clip.tokenizer import END, default_tokenizer
from cn_clip.data.captions import preprocess_text as _preprocess_text
from cn_clip.data.store import open_split
from cn_clip.errors import ConfigError, DataError
from cn_clip.parallel.ranks import joined_world

__all__ = [
    "DataInfo",
    "LMDBDataset",
    "_preprocess_text",
    "fetch_resolution",
    "get_data",
    "get_dataset",
    "pad_dataset",
]

Item = tuple[Tensor, Tensor, int]
"""Normalised picture (3, S, S), token ids (L,), position of [SEP]."""


class Args(Protocol):
    """The flags that are read here."""

    train_data: str | None
    val_data: str | None
    batch_size: int
    valid_batch_size: int
    num_workers: int
    valid_num_workers: int
    use_augment: bool
    vision_model: str
    seed: int


class LMDBDataset(Dataset[Item]):
    """Pairs of a split of either store format; indices beyond the last pair wrap round."""

    def __init__(
        self,
        lmdb_path: str,
        split: str = "val",
        max_txt_length: int = 64,
        use_augment: bool = False,
        resolution: int = 224,
    ) -> None:
        self.lmdb_path = lmdb_path
        self.split = split
        self.max_txt_length = max_txt_length
        self.use_augment = use_augment
        self._store = open_split(lmdb_path)
        self.number_samples = len(self._store.pairs)
        self.number_images = len(self._store.images)
        logging.info(
            f"{split} LMDB file contains {self.number_images} images and {self.number_samples} pairs."
        )
        self.dataset_len = self.number_samples
        self.global_batch_size = 1
        self.transform = self._build_transform(resolution)

    def _build_transform(self, resolution: int) -> Compose:
        if self.split == "train" and self.use_augment:
            return autoaugment.pipeline(autoaugment.Options(), resolution)
        return transform.image_transform(resolution)

    def __len__(self) -> int:
        return self.dataset_len

    def __getitem__(self, index: int) -> Item:
        if self.number_samples == 0:
            raise DataError(f"{self.lmdb_path} has no pairs: its captions name no picture")
        pair = self._store.pairs.read(index % self.number_samples)
        try:
            picture = transform.open_picture(self._store.images.read(pair.image_id))
        except DataError as error:
            raise DataError(f"pair {index} of {self.lmdb_path}, picture {pair.image_id}: {error}") from error
        tokenizer = default_tokenizer()
        tokens_L = tokenizer.encode([_preprocess_text(pair.caption)], self.max_txt_length)[0]
        return self.transform(picture), tokens_L, tokens_L.tolist().index(tokenizer.vocab[END])


class CountedLoader(DataLoader[Item]):
    """A loader that says how much it holds."""

    num_samples: int
    """Pairs, padding copies included."""
    num_batches: int
    """Of all ranks together, that is, optimizer steps at one micro-batch each."""


@dataclass
class DataInfo:
    dataloader: CountedLoader
    sampler: DistributedSampler[Item]
    dataset: LMDBDataset
    epoch_id: int


def pad_dataset(dataset: LMDBDataset, global_batch_size: int) -> None:
    """Lengthen a data set to whole global batches, by pairs from its beginning."""
    dataset.dataset_len = ceil(dataset.dataset_len / global_batch_size) * global_batch_size
    dataset.global_batch_size = global_batch_size


def fetch_resolution(vision_model: str) -> int:
    """Side in pixels of the pictures that an image tower takes."""
    return presets.image_preset(vision_model).image_px


def get_dataset(args: Args, is_train: bool, max_txt_length: int = 64, epoch_id: int = 0) -> DataInfo:
    """Padded data set, sampler and loader of this rank; validation is shuffled too, always as in epoch 0."""
    path = args.train_data if is_train else args.val_data
    if path is None:
        raise ConfigError(
            f"--{'train' if is_train else 'val'}-data is not given: it names the split's LMDB folder"
        )
    dataset = LMDBDataset(
        path,
        split="train" if is_train else "val",
        max_txt_length=max_txt_length,
        use_augment=args.use_augment if is_train else False,
        resolution=fetch_resolution(args.vision_model),
    )
    rank, world_size = joined_world()
    batch_size = args.batch_size if is_train else args.valid_batch_size
    pad_dataset(dataset, batch_size * world_size)
    sampler: DistributedSampler[Item] = DistributedSampler(
        dataset, num_replicas=world_size, rank=rank, shuffle=True, seed=args.seed
    )
    sampler.set_epoch(epoch_id if is_train else 0)
    loader = CountedLoader(
        dataset,
        batch_size=batch_size,
        num_workers=args.num_workers if is_train else args.valid_num_workers,
        sampler=sampler,
    )
    loader.num_samples = dataset.dataset_len
    loader.num_batches = dataset.dataset_len // dataset.global_batch_size
    return DataInfo(loader, sampler, dataset, epoch_id)


def get_data(args: Args, epoch_id: int = 0, max_txt_length: int = 64) -> dict[str, DataInfo]:
    """`train` and `val`, each when its flag is given."""
    data = {}
    if args.train_data:
        data["train"] = get_dataset(args, is_train=True, max_txt_length=max_txt_length, epoch_id=epoch_id)
    if args.val_data:
        data["val"] = get_dataset(args, is_train=False, max_txt_length=max_txt_length, epoch_id=epoch_id)
    return data
