import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from torch import Tensor, nn

from cn_clip.clip.model import CLIP, build_model
from cn_clip.parallel.recompute import keep_activations, recompute_blocks


class Normed(nn.Module):
    """BatchNorm in a block that counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.runs = 0

    def forward(self, x: Tensor, *, gain: float = 1.0) -> Tensor:
        self.runs += 1
        return self.norm(self.conv(x)) * gain


@pytest.fixture
def block() -> Normed:
    torch.manual_seed(0)
    return Normed()


def test_a_block_runs_again_in_the_backward_pass(block: Normed) -> None:
    recompute_blocks([block])
    block(torch.randn(2, 3, 8, 8), gain=2.0).sum().backward()
    assert block.runs == 2


def test_nothing_is_repeated_without_gradient(block: Normed) -> None:
    recompute_blocks([block])
    with torch.no_grad():
        block(torch.randn(2, 3, 8, 8))
    assert block.runs == 1


def test_batchnorm_statistics_move_once(block: Normed) -> None:
    plain = copy.deepcopy(block)
    images = torch.randn(2, 3, 8, 8)
    recompute_blocks([block])
    for module in (plain, block):
        (module(images) ** 2).sum().backward()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(block.state_dict()[name], tensor), name
    assert int(block.norm.num_batches_tracked) == 1
    assert block.norm.momentum == 0.1
    for ours, theirs in zip(block.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_a_copy_is_bound_to_itself(block: Normed) -> None:
    recompute_blocks([block])
    other = copy.deepcopy(block)
    other(torch.randn(2, 3, 8, 8))
    assert (block.runs, other.runs) == (0, 1)


def test_switched_off_again(block: Normed) -> None:
    recompute_blocks([block])
    recompute_blocks([block])
    keep_activations([block])
    keep_activations([block])
    block(torch.randn(2, 3, 8, 8)).sum().backward()
    assert block.runs == 1


class Gated(nn.Module):
    """A block that depends on more than its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.gain = 1.0
        self.remember = self._remember

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).exp() * self.gain

    def _remember(self) -> AbstractContextManager[None]:
        return self._with(self.gain)  # the gain of now, whenever the context is entered

    @contextmanager
    def _with(self, gain: float) -> Iterator[None]:
        before, self.gain = self.gain, gain
        try:
            yield
        finally:
            self.gain = before


def test_a_block_remembers_what_it_ran_under() -> None:
    """Several calls before one backward pass, each under something else."""
    block = Gated()
    recompute_blocks([block])
    total = torch.zeros(())
    for gain in (2.0, 3.0):
        block.gain = gain
        total = total + block(torch.ones(()))
    block.gain = 100.0
    total.backward()
    assert block.weight.grad.item() == pytest.approx((2 + 3) * math.e)
    assert block.gain == 100


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("image", ["tiny-vit", "tiny-resnet"])
def test_the_model_s_gradients_are_equal_with_dropout_on(image: str, dtype: torch.dtype, keyed: bool) -> None:
    torch.manual_seed(0)
    plain = build_model(image, "tiny-bert").train()
    recomputed = copy.deepcopy(plain)
    recomputed.set_grad_checkpointing(True)
    assert list(recomputed.state_dict()) == list(plain.state_dict())
    for model in (plain, recomputed):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            total = forward(model, keyed)
        total.backward()
    for (name, ours), theirs in zip(recomputed.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), name
    for (name, ours), theirs in zip(recomputed.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
    recomputed.set_grad_checkpointing(False)
    assert all("forward" not in vars(module) for module in recomputed.modules())


def forward(model: CLIP, keyed: bool) -> Tensor:
    torch.manual_seed(5)
    images, tokens = torch.randn(8, 3, 32, 32), torch.randint(1, 21128, (8, 9))
    keys = torch.arange(8) * 77
    total = torch.zeros(())
    for rows in (slice(0, 4), slice(4, 8)):
        image_BE, text_BE, scale = model(
            images[rows], tokens[rows], 0.5, keys_B=keys[rows] if keyed else None, text_groups=2
        )
        total = total + (scale * image_BE @ text_BE.T).logsumexp(1).sum()
    return total
