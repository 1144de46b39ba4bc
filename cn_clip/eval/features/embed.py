"""From batches of pictures or captions to features, with a bar on a terminal.

Shapes: B rows of a batch, E embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from cn_clip.clip.tokenizer import count_truncated
from cn_clip.clip.transform import exact_transform, fast_transform
from cn_clip.data.captions import Caption, preprocess_text, read_captions
from cn_clip.data.store import ImageStore
from cn_clip.errors import ConfigError, DataError
from cn_clip.eval.features.encoder import Encoder
from cn_clip.eval.features.files import write_features
from cn_clip.eval.features.inputs import Batch, Pictures, caption_batches, picture_batches

log = logging.getLogger(__name__)

TRANSFORMS = {"exact": exact_transform, "fast": fast_transform}


def embed(batches: Iterable[Batch], encode: Callable[[Tensor], Tensor]) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (ids, features_BE) of each batch (ids, inputs)."""
    for ids, inputs in batches:
        yield ids, encode(inputs)


@dataclass(frozen=True, kw_only=True)
class TextJob:
    """Captions of a file into a feature file."""

    captions: Path
    """JSONL with `text_id` and `text`."""
    output: Path
    """Feature file to write."""
    batch_size: int
    context_length: int
    """Tokens of a caption, [CLS] and [SEP] included."""

    def run(self, encoder: Encoder) -> int:
        """Write features in the file's order; returns their number."""
        captions = list(read_captions(self.captions, labelled=False))
        if not captions:
            raise DataError(f"{self.captions} has no captions: give a JSONL of text_id and text")
        _check_batch_size("--text-batch-size", self.batch_size)
        tokenizer = encoder.tokenizer(self.context_length)
        if tokenizer.own is None:  # another tower's tokenizer does not count what it cuts
            self._warn_of_cut(captions, encoder.max_context_length())
        batches = caption_batches(captions, tokenizer, self.batch_size)
        rows = embed(_bar(batches, "texts", len(captions), self.batch_size), encoder.encode_texts)
        return write_features(self.output, "text_id", rows)

    def _warn_of_cut(self, captions: Sequence[Caption], max_length: int | None) -> None:
        num_cut = count_truncated(
            (preprocess_text(caption.text) for caption in captions), self.context_length
        )
        if not num_cut:
            return
        if max_length is not None and self.context_length >= max_length:
            next_step = "the text tower takes no longer ones"
        else:
            limit = "" if max_length is None else f" (at most {max_length})"
            next_step = f"raise --context-length{limit}"
        log.warning(
            "%d of %d captions %s longer than %d tokens and %s cut: %s",
            num_cut,
            len(captions),
            "is" if num_cut == 1 else "are",
            self.context_length,
            "was" if num_cut == 1 else "were",
            next_step,
        )


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """Pictures of a store into a feature file."""

    store: Path
    """LMDB folder `imgs` of either format."""
    output: Path
    """Feature file to write."""
    batch_size: int
    transform: str
    """A name of TRANSFORMS."""
    num_workers: int
    """Loader processes; 0 reads in this one."""

    def run(self, encoder: Encoder) -> int:
        """Write features in the store's key order; returns their number."""
        store = ImageStore(self.store)
        ids = store.ids()
        if not ids:
            raise DataError(f"{self.store} has no pictures: build it again from a TSV that has some")
        _check_batch_size("--img-batch-size", self.batch_size)
        pictures = Pictures(store, ids, TRANSFORMS[self.transform](encoder.image_px))
        batches = picture_batches(
            pictures, self.batch_size, self.num_workers, pin=encoder.device.type == "cuda"
        )
        rows = embed(_bar(batches, "images", len(ids), self.batch_size), encoder.encode_images)
        return write_features(self.output, "image_id", rows)


def _bar(batches: Iterable[Batch], what: str, num_rows: int, batch_size: int) -> Iterable[Batch]:
    return tqdm(batches, desc=what, total=-(-num_rows // batch_size), unit="batch", disable=None)


def _check_batch_size(flag: str, size: int) -> None:
    if size < 1:
        raise ConfigError(f"{flag} is {size}, which should be at least 1")
