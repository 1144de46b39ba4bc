from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from cn_clip.clip.tokenizer import tokenize_captions
from cn_clip.eval.zeroshot import classifier
from cn_clip.eval.zeroshot.classifier import class_vectors, classify


class HashedTexts:
    """An encoder whose text feature is a fixed random direction of its tokens; pictures are their own features."""

    def encode_images(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW

    def encode_texts(self, tokens_BL: Tensor) -> Tensor:
        return torch.stack([self._feature(row) for row in tokens_BL.tolist()])

    def tokenizer(self, context_length: int) -> Callable[[Sequence[str]], Tensor]:
        return lambda texts: tokenize_captions(texts, context_length)

    @staticmethod
    def _feature(row: list[int]) -> Tensor:
        seed = sum(place * token for place, token in enumerate(row, start=1))
        return 5 * torch.randn(4, generator=torch.Generator().manual_seed(seed))


def test_a_class_is_the_mean_direction_of_its_prompts() -> None:
    encoder, templates = HashedTexts(), ("{}", "一张{}", "“{}”")
    vectors_KE = class_vectors(encoder, ["猫", "Dog"], templates, context_length=8)
    prompts = ["dog", "一张dog", '"dog"']  # lower case and straight quotes, as captions are
    features = encoder.encode_texts(tokenize_captions(prompts, 8))
    mean = (features / features.norm(dim=1, keepdim=True)).mean(0)
    torch.testing.assert_close(vectors_KE[1], mean / mean.norm())
    assert vectors_KE.shape == (2, 4)


def test_groups_of_classes_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"第{number}类" for number in range(7)]
    whole = class_vectors(HashedTexts(), names, ("{}", "一张{}"), 10)
    for at_once in (1, 5):
        monkeypatch.setattr(classifier, "PROMPTS_AT_ONCE", at_once)
        torch.testing.assert_close(class_vectors(HashedTexts(), names, ("{}", "一张{}"), 10), whole)


def test_probabilities_are_of_scaled_cosines() -> None:
    vectors_KE = torch.eye(3)
    pictures = torch.tensor([[2.0, 0, 0], [0, 3, 4]])
    ((probabilities, labels),) = classify(
        HashedTexts(), [(pictures, torch.tensor([0, 2]))], vectors_KE, scale=10
    )
    expected = torch.tensor([[10.0, 0, 0], [0, 6, 8]]).softmax(1)
    torch.testing.assert_close(probabilities, expected)
    assert labels.tolist() == [0, 2]
