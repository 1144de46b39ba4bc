"""Batches of what is to be encoded: pictures of a store, captions of a file.

Shapes: B rows of a batch, C H W picture, L tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cn_clip.data.captions import Caption, preprocess_text
from cn_clip.data.store import ImageStore
from cn_clip.errors import DataError

Batch = tuple[list[int], Tensor]
"""Ids of B rows, and the rows."""
Item = tuple[int, Tensor] | DataError


@dataclass(frozen=True)
class Pictures(Dataset[Item]):
    """Pictures of a store in the order of `ids`, transformed; an unreadable one comes as its error.

    The error travels as a value because a loader process would wrap a raised one into its traceback.
    """

    store: ImageStore
    ids: Sequence[int]
    transform: Callable[[bytes], Tensor]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> Item:
        image_id = self.ids[position]
        try:
            raw = self.store.read(image_id)
        except DataError as error:
            return error
        try:
            return image_id, self.transform(raw)
        except DataError as error:
            return DataError(
                f"picture {image_id} of {self.store.path}: {error}; mend or remove its row and rebuild"
            )


def picture_batches(
    pictures: Pictures, batch_size: int, num_workers: int, pin: bool = False
) -> Iterator[Batch]:
    """Yield (ids, pictures [B, C, H, W]) in order; raises the first DataError met."""
    loader = DataLoader(
        pictures, batch_size=batch_size, num_workers=num_workers, collate_fn=_stack, pin_memory=pin
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def caption_batches(
    captions: Sequence[Caption], tokenize: Callable[[Sequence[str]], Tensor], batch_size: int
) -> Iterator[Batch]:
    """Yield (text ids, tokens [B, L]) in order."""
    for start in range(0, len(captions), batch_size):
        part = captions[start : start + batch_size]
        yield (
            [caption.text_id for caption in part],
            tokenize([preprocess_text(caption.text) for caption in part]),
        )


def _stack(items: list[Item]) -> Batch | DataError:
    ids, pictures = [], []
    for item in items:
        if isinstance(item, DataError):
            return item
        ids.append(item[0])
        pictures.append(item[1])
    return ids, torch.stack(pictures)
