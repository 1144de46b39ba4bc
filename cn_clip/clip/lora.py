"""Low-rank adapters (LoRA, arXiv:2106.09685) in either tower, by peft; files look as if there were none.

A *live* state dict is that of a model with adapters; `merged` turns it into the layout of the published checkpoints, with the
adapters added to the weights that they stand beside. Names are the model's, without `module.`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cn_clip.clip.model import CLIP
from cn_clip.clip.weights.layouts import Weights, is_for_training_only
from cn_clip.config.schema import Lora
from cn_clip.errors import ConfigError
from cn_clip.parallel.rng import seeded, stable_seed
from cn_clip.towers.split_attention import joined, split_attentions

logger = logging.getLogger(__name__)

TOWERS = {"visual": "image", "bert": "text"}
"""Name of each tower in the model, and in settings and messages."""

SCALING = "lora_scaling"
"""Buffer of a tower with adapters, so that its state dict tells what they count: alpha / rank."""

_ADAPTER = "default"  # peft's name of the one adapter that a layer has
_DOWN, _UP = (f".lora_{half}.{_ADAPTER}.weight" for half in "AB")
_DEFAULT_SCALING = 2.0
_SPLIT_ATTENTION = re.compile(r"(visual\.transformer\.resblocks\.\d+\.attn)\.q_proj\.weight")


def is_adapter(name: str) -> bool:
    """Whether an entry of a live state dict is one that the model has for its adapters."""
    return ".lora_" in name


def add_adapters(model: CLIP, settings: Lora, seed: int) -> list[nn.Module]:
    """Put adapters into the towers that the settings name, and take these towers' own weights out of training.

    Call it on the bare model with its weights in, before towers are frozen, dropout keyed and the model wrapped. Fresh
    adapters change nothing: their second half is zero. The first is drawn from `seed`. Returns the BatchNorms of these towers,
    which are to keep their statistics.
    """
    ranks = {"visual": settings.image_rank, "bert": settings.text_rank}
    norms: list[nn.Module] = []
    for number, (name, rank) in enumerate(ranks.items()):
        if rank > 0:
            tower = model.get_submodule(name)
            with seeded(stable_seed(seed, number), torch.device("cpu")):
                layers = _adapt(model, name, rank, settings)
            norms += [module for module in tower.modules() if isinstance(module, _BatchNorm)]
            _log_added(name, tower, rank, layers)
    if settings.text_rank > 0:
        model.text_projection.requires_grad_(False)  # the text tower's own too
    return norms


def merged(live: Mapping[str, Tensor]) -> Weights:
    """Weights in the published layout that compute what the live ones do; the same where there are no adapters."""
    plain = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in live.items()
        if not is_adapter(name) and not is_for_training_only(name)
    }
    for name, down in live.items():
        if name.endswith(_DOWN):
            layer = name.removesuffix(_DOWN)
            scaling = float(live[f"{layer.partition('.')[0]}.{SCALING}"])
            weight = plain[f"{layer}.weight"]
            delta = scaling * _product(down, live[layer + _UP])
            plain[f"{layer}.weight"] = (weight.float() + delta).to(weight.dtype)
    for match in filter(None, map(_SPLIT_ATTENTION.fullmatch, list(plain))):
        plain = joined(plain, match[1])
    return plain


def _adapt(model: CLIP, name: str, rank: int, settings: Lora) -> list[str]:
    """Adapters for one tower; returns the names in it of the layers that have them."""
    tower = model.get_submodule(name)
    blocks = model.visual.blocks() if name == "visual" else model.bert.blocks()
    split_attentions(blocks)
    fitting = {m for block in blocks for m in block.modules() if _takes_adapter(m)}
    called = _called(model, name, fitting)
    layers = [layer for layer, module in tower.named_modules() if module in called]
    if not layers:
        kind = TOWERS[name]
        raise ConfigError(f"lora.{kind}_rank: the {kind} tower has no layers that adapters fit; set it to 0")
    scaling = _DEFAULT_SCALING if settings.alpha is None else settings.alpha / rank
    _inject(tower, layers, rank, scaling, settings.dropout)
    tower.register_buffer(SCALING, torch.tensor(scaling, device=model.logit_scale.device))
    return layers


def _takes_adapter(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _called(model: CLIP, name: str, modules: Iterable[nn.Module]) -> set[nn.Module]:
    """Those of the modules that encoding one picture or one caption calls.

    Some models read a layer's weight and never call it: an adapter beside it would take no part.
    """
    if model.logit_scale.is_meta:  # a plan of a model, which cannot be run
        return set(modules)
    called: set[nn.Module] = set()
    hooks = [m.register_forward_pre_hook(lambda module, _: called.add(module)) for m in modules]
    was_training, device = model.training, model.logit_scale.device
    model.eval()  # nothing random, and no statistics change
    try:
        with torch.no_grad():
            if name == "visual":
                px = model.visual.image_px
                model.encode_image(torch.zeros(1, 3, px, px, device=device))
            else:
                model.encode_text(torch.full((1, 4), model.bert.pad_id + 1, device=device))
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return called


def _inject(tower: nn.Module, layers: Sequence[str], rank: int, scaling: float, dropout: float) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ConfigError(
            "lora.image_rank and lora.text_rank need the peft package: pip install 'cn_clip[lora]'"
        ) from error
    alpha: Any = scaling * rank  # Any: peft declares a whole number, and divides whatever it gets by the rank
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(layers))
    inject_adapter_in_model(config, tower, adapter_name=_ADAPTER)


def _log_added(name: str, tower: nn.Module, rank: int, layers: Sequence[str]) -> None:
    trained = sum(p.numel() for p in tower.parameters() if p.requires_grad)
    logger.info(
        "LoRA: adapters of rank %d beside %d layers of the %s tower, %d numbers to train beside %d frozen ones.",
        rank,
        len(layers),
        TOWERS[name],
        trained,
        sum(p.numel() for p in tower.parameters()) - trained,
    )


def _product(down: Tensor, up: Tensor) -> Tensor:
    """Weight, in fp32, of an adapter's two layers after one another: linear (O, I), or convolution (O, I, H, W)."""
    return torch.einsum("or,ri...->oi...", up.float().flatten(1), down.float())
