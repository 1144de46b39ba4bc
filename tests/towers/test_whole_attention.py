import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cn_clip.towers.image.vit import VitTower
from cn_clip.towers.whole_attention import WholeAttention


class Operations(TorchDispatchMode):
    """Names of what ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: set[str] = set()
        self.batches: set[int] = set()
        """Of products in batches: how many to one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own
        self.ran.add(str(func))
        if func is torch.ops.aten.bmm.default:
            self.batches.add(len(args[0]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("training", [True, False])
def test_it_equals_torch_s_attention(training: bool) -> None:
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(32, 2, batch_first=True).train(training)
    nn.init.normal_(stock.in_proj_bias)
    whole = WholeAttention(copy.deepcopy(stock)).train(training)
    assert [name for name, _ in whole.named_parameters()] == [name for name, _ in stock.named_parameters()]
    tokens, up = torch.randn(2, 3, 7, 32)
    mask = torch.randn(7, 7)
    for attn_mask in (None, mask):
        ours, theirs = (
            attention(tokens, tokens, tokens, need_weights=False, attn_mask=attn_mask)[0]
            for attention in (whole, stock)
        )
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        ours.backward(up)
        theirs.backward(up)
    for one, other in zip(whole.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_frozen", [False, True])
def test_a_frozen_tower_multiplies_as_one_that_learns(
    tower: VitTower, images: Tensor, is_frozen: bool
) -> None:
    """nn.MultiheadAttention under autocast: a product for each position, and the weights copied for it."""
    tower.requires_grad_(not is_frozen)
    with Operations() as operations, torch.autocast("cpu", dtype=torch.bfloat16):
        tower(images)
    assert "aten.addmm.default" in operations.ran
    assert operations.batches <= {3 * 2}, "of pictures and heads, none of 17 positions"
