"""How deep in its tower each parameter lies: before the blocks, in one of them, or after them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from cn_clip.clip.model import CLIP

IMAGE, TEXT = "visual.", "bert."
"""Begin the names of the towers' parameters; `text_projection` is the text tower's too."""

HEAD_PARAMETER = "proj"  # of CLIP's ViT, which registers it before its blocks


def depths(tower: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, int]:
    """Depth of each parameter by its name in the tower: 0 for the stem, 1 to n for the blocks, n + 1 for the head.

    The stem is what is registered before the first block, and all parameters beside the blocks' container but `proj`.
    A tower without blocks is all head.
    """
    block_of = {id(module): n for n, block in enumerate(blocks, 1) for module in block.modules()}
    tops = {id(block) for block in blocks}
    around = {id(m) for m in tower.modules() if id(m) not in block_of and _contains(m, tops)}
    head, passed_blocks = len(blocks) + 1, not blocks
    found = {}
    for prefix, module in tower.named_modules():
        passed_blocks |= id(module) in block_of
        for name, _ in module.named_parameters(recurse=False):
            depth = block_of.get(id(module), head if passed_blocks else 0)
            if id(module) in around:
                depth = head if name == HEAD_PARAMETER else 0
            found[f"{prefix}.{name}" if prefix else name] = depth
    return found


def _contains(module: nn.Module, tops: set[int]) -> bool:
    return any(id(inner) in tops for inner in module.modules())


def image_depths(model: CLIP) -> dict[str, int]:
    """Depth of each parameter of the image tower, by its name in the model."""
    return {
        IMAGE + name: depth for name, depth in depths(_module(model.visual), model.visual.blocks()).items()
    }


def text_depths(model: CLIP) -> dict[str, int]:
    """Depth of each parameter of the text tower, its projection included, by its name in the model."""
    blocks = model.bert.blocks()
    inside = {TEXT + name: depth for name, depth in depths(_module(model.bert), blocks).items()}
    return {"text_projection": len(blocks) + 1, **inside}


def _module(tower: object) -> nn.Module:
    assert isinstance(tower, nn.Module)  # every tower is one; a Protocol cannot say so
    return tower
