"""The zero-shot classifier of CLIP (arXiv:2103.00020, section 3.1.4): a class is the mean direction of its prompts.

Shapes: K classes, E embedding, B pictures or prompts of a batch, L tokens, C H W picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from cn_clip.data.captions import preprocess_text
from cn_clip.eval.zeroshot.templates import fill

PROMPTS_AT_ONCE = 256
REFERENCE_SCALE = 100.0
"""What the reference multiplies cosines with; a trained model's own scale is at most this."""


class Encodes(Protocol):
    """What is asked of `eval.features.encoder.Encoder`; features are on the CPU, not normalised."""

    def encode_images(self, images_BCHW: Tensor) -> Tensor: ...

    def encode_texts(self, tokens_BL: Tensor) -> Tensor: ...

    def tokenizer(self, context_length: int) -> Callable[[Sequence[str]], Tensor]: ...


def class_vectors(
    encoder: Encodes, names: Sequence[str], templates: Sequence[str], context_length: int
) -> Tensor:
    """Unit vector of each class [K, E]: mean of its prompts' unit features, made unit again."""
    tokenize = encoder.tokenizer(context_length)
    classes_at_once = max(1, PROMPTS_AT_ONCE // len(templates))
    vectors = []
    for first in tqdm(range(0, len(names), classes_at_once), desc="class names", disable=None):
        group = names[first : first + classes_at_once]
        prompts = [preprocess_text(prompt) for name in group for prompt in fill(templates, name)]
        features_BE = F.normalize(encoder.encode_texts(tokenize(prompts)), dim=-1)
        vectors.append(features_BE.view(len(group), len(templates), -1).mean(1))
    return F.normalize(torch.cat(vectors), dim=-1)


def classify(
    encoder: Encodes,
    batches: Iterable[tuple[Tensor, Tensor]],
    vectors_KE: Tensor,
    scale: float = REFERENCE_SCALE,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(probabilities_BK, labels_B) of each batch of (pictures_BCHW, labels_B)."""
    for images_BCHW, labels_B in batches:
        features_BE = F.normalize(encoder.encode_images(images_BCHW), dim=-1)
        yield (scale * features_BE @ vectors_KE.T).softmax(-1), labels_B
