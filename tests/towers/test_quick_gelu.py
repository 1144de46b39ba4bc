import pytest
import torch
from torch import Tensor

from cn_clip.towers.quick_gelu import QuickGELU


def formula(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learns", [False, True])
def test_it_is_the_formula_to_the_bit(dtype: torch.dtype, learns: bool) -> None:
    x = torch.linspace(-30, 30, 4_001).to(dtype).requires_grad_(learns)
    assert torch.equal(QuickGELU()(x), formula(x))


def test_its_gradient_is_that_of_the_formula() -> None:
    x = torch.linspace(-30, 30, 4_001, dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(QuickGELU()(x).sum(), x)
    (theirs,) = torch.autograd.grad(formula(x).sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_it_keeps_its_input_alone() -> None:
    kept: list[Tensor] = []
    x = torch.randn(5, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor), lambda _: x):
        QuickGELU()(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]


def test_it_can_be_traced() -> None:
    x = torch.randn(5, requires_grad=True)
    assert torch.equal(torch.jit.trace(QuickGELU(), x)(x), formula(x))
