import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.towers import cpu_attention
from cn_clip.towers.cpu_attention import attend


def heads(length: int, dtype: torch.dtype, sharpness: float = 1.0) -> list[Tensor]:
    """Query, key and value, as a whole projection gives them; and what comes down."""
    random = torch.Generator().manual_seed(0)
    projected = sharpness * torch.randn(3, length, 3, 4, 16, generator=random)
    down = torch.randn(3, 4, length, 16, generator=random)
    return [*projected.to(dtype).permute(2, 0, 3, 1, 4).unbind(), down.to(dtype)]


def results(attention: object, *given: Tensor) -> list[Tensor]:
    """What comes out, and the gradients of query, key and value."""
    leaves = [tensor.detach().requires_grad_() for tensor in given[:3]]
    assert callable(attention)
    mixed = attention(*leaves)
    return [mixed, *torch.autograd.grad(mixed, leaves, given[3].to(mixed.dtype))]


@pytest.mark.parametrize("sharpness", [1.0, 3.0])
@pytest.mark.parametrize("is_autocast", [False, True])
def test_it_is_no_further_from_the_truth_than_the_flash_kernel(sharpness: float, is_autocast: bool) -> None:
    low = heads(50, torch.bfloat16, sharpness)
    truth = results(F.scaled_dot_product_attention, *heads(50, torch.float64, sharpness))
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        ours = results(attend, *low)
    theirs = results(F.scaled_dot_product_attention, *low)
    for true, one, other in zip(truth, ours, theirs, strict=True):
        assert one.dtype == torch.bfloat16 and one.shape == true.shape
        assert (one - true).norm() < 1.15 * (other - true).norm()


@pytest.mark.parametrize(
    ("dtype", "length", "has_mask", "learns"),
    [
        (torch.float32, 50, False, True),
        (torch.bfloat16, cpu_attention.LONGEST + 1, False, True),
        (torch.bfloat16, 50, True, True),
        (torch.bfloat16, 50, False, False),
    ],
)
def test_elsewhere_it_is_sdpa_to_the_bit(
    dtype: torch.dtype, length: int, has_mask: bool, learns: bool
) -> None:
    query, key, value, _ = heads(length, dtype)
    mask = torch.ones(length, length).tril().bool() if has_mask else None
    ours = attend(query.requires_grad_(learns), key, value, mask)
    assert torch.equal(ours, F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
