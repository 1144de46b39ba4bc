"""Features and gradients of a step do not depend on how its pairs are cut, padded, sorted or recomputed.

Cuts are compared in fp64, where only another mask or another sum can show: whatever rounding does is 1e-15 there. In fp32
rounding alone makes a median of 3e-7, as it does in a model with nothing random, and single draws of more than 1e-6.

Letters: B pairs, L tokens, E embedding. Dropout is on in both kinds (features and attention), half the patches are masked.
"""

import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType

import pytest
import torch
import torch.nn.functional as F
from open_clip.transformer import LayerNormFp32
from torch import Tensor, nn

from cn_clip.clip.model import CLIP, build_model
from cn_clip.parallel.wrap import batch_statistics_only
from cn_clip.towers.pair_random import pair_keys

NUM_PAIRS, LENGTH = 8, 14
NO_DIFFERENCE = 1e-12  # of gradients in fp64, relative to their norm

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    images: Tensor
    tokens: Tensor
    keys: Tensor

    def cut(self, size: int) -> Iterator["Batch"]:
        parts = (values.split(size) for values in vars(self).values())
        return (Batch(*part) for part in zip(*parts, strict=True))

    def trimmed(self) -> "Batch":
        return Batch(self.images, self.tokens[:, : int(self.tokens.ne(0).sum(1).max())], self.keys)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(NUM_PAIRS, 3, 32, 32, generator=generator)
    tokens = torch.randint(1, 21128, (NUM_PAIRS, LENGTH), generator=generator)
    lengths = torch.tensor([4, 11, 6, 3, 9, 9, 5, 7])  # the longest is shorter than the padding
    tokens[torch.arange(LENGTH) >= lengths[:, None]] = 0
    return Batch(images, tokens, pair_keys(99, torch.arange(NUM_PAIRS)))


@pytest.fixture(params=["tiny-vit", "tiny-resnet"])
def model(request: pytest.FixtureRequest) -> CLIP:
    torch.manual_seed(0)
    return build_model(request.param, "tiny-bert").train()


def gradients(
    model: CLIP, parts: list[Batch], *, mask_ratio: float = 0.5, text_groups: int = 1, keyed: bool = True
) -> Gradients:
    """Of the contrastive loss of all pairs; every part is encoded before the one backward pass."""
    model.zero_grad()
    found = [
        model(
            part.images,
            part.tokens,
            mask_ratio,
            keys_B=part.keys if keyed else None,
            text_groups=text_groups,
        )
        for part in parts
    ]
    image_BE, text_BE = (torch.cat([features[i] for features in found]) for i in (0, 1))
    logits_BB = found[-1][2] * image_BE @ text_BE.T
    match_B = torch.arange(len(logits_BB))
    (F.cross_entropy(logits_BB, match_B) + F.cross_entropy(logits_BB.T, match_B)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def difference(one: Gradients, other: Gradients) -> float:
    assert one.keys() == other.keys()
    apart = sum((one[name] - other[name]).norm() ** 2 for name in one)
    return float((apart / sum(gradient.norm() ** 2 for gradient in one.values())).sqrt())


@pytest.fixture
def vit() -> CLIP:
    """In fp64 throughout."""
    torch.manual_seed(0)
    model = build_model("tiny-vit", "tiny-bert").double().train()
    for module in model.modules():
        if isinstance(module, LayerNormFp32):  # which would round to fp32, whatever the weights' type
            vars(module)["forward"] = MethodType(nn.LayerNorm.forward, module)
    return model


@pytest.mark.parametrize("size", [8, 4, 2, 1])
@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
def test_cuts(vit: CLIP, batch: Batch, size: int, trim: bool, recompute: bool) -> None:
    whole = gradients(vit, [batch])
    vit.set_grad_checkpointing(recompute)
    parts = [part.trimmed() if trim else part for part in batch.cut(size)]
    assert difference(whole, gradients(vit, parts)) < NO_DIFFERENCE


def test_cuts_in_fp32_differ_by_rounding_alone(batch: Batch) -> None:
    """99 is a draw whose rounding is 1.2e-6, four times the usual."""
    torch.manual_seed(0)
    model = build_model("tiny-vit", "tiny-bert").train()
    apart = []
    for seed in (99, 0, 1, 2, 3, 4, 5):
        keyed = Batch(batch.images, batch.tokens, pair_keys(seed, torch.arange(NUM_PAIRS)))
        apart.append(difference(gradients(model, [keyed]), gradients(model, list(keyed.cut(2)))))
    assert statistics.median(apart) < 1e-6
    assert max(apart) < 5e-6


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 11])
@pytest.mark.parametrize("size", [8, 4])
def test_length_groups(vit: CLIP, batch: Batch, groups: int, size: int) -> None:
    whole = gradients(vit, [batch])
    vit.set_grad_checkpointing(True)
    assert difference(whole, gradients(vit, list(batch.cut(size)), text_groups=groups)) < NO_DIFFERENCE


def test_other_keys_give_other_gradients(vit: CLIP, batch: Batch) -> None:
    """What the others here would miss if keys did nothing."""
    other = Batch(batch.images, batch.tokens, batch.keys + 1)
    assert difference(gradients(vit, [batch]), gradients(vit, [other])) > 0.1
    torch.manual_seed(1)
    once = gradients(vit, [batch], keyed=False)
    assert difference(once, gradients(vit, [batch], keyed=False)) > 0.1, "torch's generators move on"


def test_with_keys_torch_s_generators_do_not_matter(vit: CLIP, batch: Batch) -> None:
    for mask_ratio in (0.0, 0.5):
        one = gradients(vit, [batch], mask_ratio=mask_ratio)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            other = gradients(vit, [batch], mask_ratio=mask_ratio)
        assert all(torch.equal(one[name], other[name]) for name in one), mask_ratio


@pytest.mark.parametrize("groups", [1, 2])
def test_recompute_is_bitwise_equal(model: CLIP, batch: Batch, groups: int) -> None:
    plain = copy.deepcopy(model)
    model.set_grad_checkpointing(True)
    parts = list(batch.cut(4))
    ours, expected = (gradients(each, parts, text_groups=groups) for each in (model, plain))
    assert all(torch.equal(ours[name], expected[name]) for name in expected)
    for (name, buffer), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(buffer, other), name


def test_cached_features_and_their_repetition_meet_the_same_numbers(model: CLIP, batch: Batch) -> None:
    """As accumulation does it: first without gradients, later once more with them, other batches in between."""
    with torch.no_grad(), batch_statistics_only(model):
        cached = model(batch.images, batch.tokens, 0.5, keys_B=batch.keys)
        model(batch.images, batch.tokens, 0.5, keys_B=batch.keys + 1)
    again = model(batch.images, batch.tokens, 0.5, keys_B=batch.keys)
    for first, second in zip(cached[:2], again[:2], strict=True):
        assert torch.equal(first, second)


def test_the_text_tower_beside_a_resnet(batch: Batch) -> None:
    torch.manual_seed(0)
    model = build_model("tiny-resnet", "tiny-bert").double().train()
    model.visual.eval()  # type: ignore[attr-defined]  # a Protocol does not say that it is a module
    whole = gradients(model, [batch])
    assert difference(whole, gradients(model, [part.trimmed() for part in batch.cut(2)])) < NO_DIFFERENCE


def test_compiled_blocks(vit: CLIP, batch: Batch) -> None:
    """Traced, not lowered to machine code: that takes a minute and is the compiler's affair."""
    whole = gradients(vit, [batch])
    for recompute in (False, True):
        compiled = copy.deepcopy(vit)
        compiled.set_grad_checkpointing(recompute)
        for block in (*compiled.visual.blocks(), *compiled.bert.blocks()):
            block.compile(backend="aot_eager")
        assert difference(whole, gradients(compiled, list(batch.cut(4)))) < NO_DIFFERENCE
