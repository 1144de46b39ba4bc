import copy
import logging

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cn_clip.errors import ConfigError, DeviceError
from cn_clip.towers.attention_kernel import choose_attention
from cn_clip.towers.image.resnet import Options as ResNetOptions
from cn_clip.towers.image.resnet import ResNetTower
from cn_clip.towers.image.vit import VitTower
from cn_clip.towers.split_attention import split_attentions

CPU = torch.device("cpu")


class Kernels(TorchDispatchMode):
    """Names of the attention kernels that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ran: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]  # torch's own
        if "attention" in str(func):
            self.ran.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_flash_is_torch_s_flash_kernel_with_the_same_results(
    tower: VitTower, images: Tensor, training: bool, split: bool
) -> None:
    if split:
        split_attentions(tower.blocks())
    tower.train(training)
    plain = copy.deepcopy(tower)
    names = list(tower.state_dict())
    choose_attention(tower, "flash", device=CPU, dtype=torch.float32)
    with Kernels() as kernels:
        found = tower(images)
    assert len(kernels.ran) == 2 and all("flash_attention" in name for name in kernels.ran)
    torch.testing.assert_close(found, plain(images), rtol=0, atol=1e-6)
    found.sum().backward()
    plain(images).sum().backward()
    for ours, theirs in zip(tower.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert list(tower.state_dict()) == names


def test_a_copy_attends_by_its_own_weights(tower: VitTower, images: Tensor) -> None:
    choose_attention(tower, "flash", device=CPU, dtype=torch.float32)
    other = copy.deepcopy(tower)
    with torch.no_grad():
        for block in other.blocks():
            block.attn.in_proj_weight.zero_()
    before = tower(images)
    assert not torch.allclose(other(images), before, atol=1e-4)
    assert torch.equal(tower(images), before)


def test_auto_is_torch_s_choice_again(tower: VitTower) -> None:
    choose_attention(tower, "flash", device=CPU, dtype=torch.float32)
    choose_attention(tower, "auto", device=CPU, dtype=torch.float32)
    assert not any("forward" in vars(module) for module in tower.modules())


def test_no_flash_kernel_for_a_type(tower: VitTower, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        DeviceError, match="model.attention is flash, but torch has no flash kernel for torch.float"
    ) as e:
        choose_attention(tower, "flash", device=CPU, dtype=torch.float8_e4m3fn)
    assert "\n" not in str(e.value) and "heads of 16 channels on cpu" in str(e.value)
    assert not any("forward" in vars(module) for module in tower.modules()), "nothing is changed"


def test_the_package_is_asked_for_and_missing(tower: VitTower) -> None:
    with pytest.raises(
        DeviceError, match="flash_attn, but the package is not installed: pip install flash-attn"
    ):
        choose_attention(tower, "flash_attn", device=CPU, dtype=torch.bfloat16)


@pytest.mark.parametrize("kernel", ["flash", "flash_attn"])
def test_a_tower_without_attention_blocks(kernel: str) -> None:
    resnet = ResNetTower(ResNetOptions(image_px=32, width=8, layers=(1, 1, 1, 1), embed_dim=12))
    with pytest.raises(
        ConfigError, match=f"model.attention is {kernel}, but ResNetTower has no attention blocks"
    ):
        choose_attention(resnet, kernel, device=CPU, dtype=torch.float32)  # type: ignore[arg-type]  # a parameter


def test_the_reference_s_flag_says_what_it_comes_to(
    tower: VitTower, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        choose_attention(tower, "auto", device=CPU, dtype=torch.float32)
        assert caplog.messages == []
        choose_attention(tower, "auto", device=CPU, dtype=torch.float32, flash_attention=True)
    assert caplog.messages == [
        "model.flash_attention (--use-flash-attention) does nothing on this device: no flash kernel."
    ]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_flash_on_a_gpu(tower: VitTower, images: Tensor, dtype: torch.dtype) -> None:
    device = torch.device("cuda")
    tower.to(device)
    images = images.to(device)
    plain = copy.deepcopy(tower)
    choose_attention(tower, "flash", device=device, dtype=dtype)
    with torch.autocast("cuda", dtype=dtype):
        with Kernels() as kernels:
            found = tower(images)
        torch.testing.assert_close(found, plain(images), rtol=0, atol=2e-2)
    assert any("flash" in name for name in kernels.ran)
    with pytest.raises(DeviceError, match=r"no flash kernel for torch\.float32"):
        choose_attention(tower, "flash", device=device, dtype=torch.float32)
