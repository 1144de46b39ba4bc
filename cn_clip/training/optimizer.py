"""The optimizer of a run, over the parameter groups of the reference unless the settings ask for others.

A group holds the names of its parameters (`param_names`, torch's own word), so that its state can be mapped by name
whatever the groups; and `lr_scale`, times the schedule its learning rate, where not all learn at the same.
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cn_clip.clip.model import CLIP
from cn_clip.clip.weights import decays_in_reference, parameter_names
from cn_clip.config.schema import Optim
from cn_clip.errors import ConfigError
from cn_clip.parallel.shards import is_sharded
from cn_clip.training.tower_layers import image_depths, text_depths

logger = logging.getLogger(__name__)

ParameterGroup = dict[str, Any]
"""As torch takes it; `Any` since its values are tensors, names and numbers."""


@dataclass(frozen=True, order=True)
class _Place:
    """What decides the group of a parameter; groups are in this order."""

    decays: bool
    is_sharded: bool
    """torch's fused kernels take a list of whole or of sharded tensors, not of both."""
    lr_scale: float = 1.0
    weight_decay: float = 0.0


def build_optimizer(model: CLIP, settings: Optim) -> torch.optim.Optimizer:
    """Optimizer of what takes a gradient in the bare model, wrapped or not; ConfigError for one that does not exist."""
    groups = parameter_groups(model, settings)
    if settings.type == "adamw":
        return _adamw(groups, settings)
    return _of_timm(groups, settings)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group its share of the schedule's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def parameter_groups(model: CLIP, settings: Optim) -> list[ParameterGroup]:
    """Group 0 is never decayed (norms, biases, the scale), group 1 is: the reference's, in its order.

    Where towers, layers or the engine ask for more groups, those without decay still come first.
    """
    parameters = dict(model.named_parameters())
    members: dict[_Place, list[str]] = {}
    own_groups = _has_own_groups(settings)
    if not own_groups and not any(is_sharded(p) for p in parameters.values()):
        members = {_Place(False, False): [], _Place(True, False, 1.0, settings.weight_decay): []}
    places = _places(model, settings)
    for name in parameter_names(model):
        if parameters[name].requires_grad:
            members.setdefault(places[name], []).append(name)
    assert settings.lr is not None  # build_config filled it in
    return [
        {
            "params": [parameters[name] for name in names],
            "param_names": names,
            "weight_decay": place.weight_decay,
        }
        | ({"lr": settings.lr * place.lr_scale, "lr_scale": place.lr_scale} if own_groups else {})
        for place, names in sorted(members.items())
    ]


def _has_own_groups(settings: Optim) -> bool:
    """Whether the settings ask for more than the reference's two groups."""
    rates = (settings.image_lr, settings.text_lr, settings.image_weight_decay, settings.text_weight_decay)
    layered = settings.image_layer_decay != 1 or settings.text_layer_decay != 1
    return layered or settings.decay != "reference" or any(rate is not None for rate in rates)


def _places(model: CLIP, settings: Optim) -> dict[str, _Place]:
    decayed = _matrices(model) if settings.decay == "matrices" else None
    scale_of, decay_of = _lr_scales(model, settings), _weight_decays(model, settings)
    places = {}
    for name, p in model.named_parameters():
        decays = decays_in_reference(name) if decayed is None else name in decayed
        weight_decay = decay_of.get(name, settings.weight_decay) if decays else 0.0
        places[name] = _Place(decays, is_sharded(p), scale_of.get(name, 1.0), weight_decay)
    return places


def _matrices(model: nn.Module) -> set[str]:
    """Weights of two and more dimensions that are no table of embeddings, positions, tokens or biases."""
    tables = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    return {
        name
        for name, p in model.named_parameters()
        if p.ndim >= 2
        and name not in tables
        and not any(word in name.rpartition(".")[2] for word in ("embed", "token", "bias"))
    }


def _lr_scales(model: CLIP, settings: Optim) -> dict[str, float]:
    """Learning rate of each tower's parameters as a share of `lr`: the tower's own, times its layer's factor."""
    scales: dict[str, float] = {}
    for kind, depth_of, lr, factor in (
        ("image", image_depths(model), settings.image_lr, settings.image_layer_decay),
        ("text", text_depths(model), settings.text_lr, settings.text_layer_decay),
    ):
        head = max(depth_of.values())
        if factor != 1 and head <= 1:
            raise ConfigError(
                f"optim.{kind}_layer_decay needs blocks, which the {kind} tower has not: set it to 1"
            )
        share = _share(kind, lr, settings)
        scales |= {name: share * factor ** (head - depth) for name, depth in depth_of.items()}
    return scales


def _share(kind: str, lr: float | None, settings: Optim) -> float:
    if lr is None or lr == settings.lr:
        return 1.0
    if not settings.lr:
        raise ConfigError(
            f"optim.lr is 0, so optim.{kind}_lr has no schedule to follow: set optim.lr above 0, and the rate of the "
            "other tower to 0"
        )
    return lr / settings.lr


def _weight_decays(model: CLIP, settings: Optim) -> dict[str, float]:
    own = (
        (image_depths(model), settings.image_weight_decay),
        (text_depths(model), settings.text_weight_decay),
    )
    return {name: decay for names, decay in own if decay is not None for name in names}


def _adamw(groups: list[ParameterGroup], settings: Optim) -> torch.optim.AdamW:
    lr, beta1, beta2, eps = settings.lr, settings.beta1, settings.beta2, settings.eps
    assert lr is not None and beta1 is not None and beta2 is not None and eps is not None  # by build_config
    devices = {p.device.type for group in groups for p in group["params"]}
    return torch.optim.AdamW(groups, lr=lr, betas=(beta1, beta2), eps=eps, fused=devices <= {"cpu", "cuda"})


def _of_timm(groups: list[ParameterGroup], settings: Optim) -> torch.optim.Optimizer:
    """An optimizer of timm's; each group says which, so that another's state is not taken for its own."""
    from timm.optim import Lamb, create_optimizer_v2, get_optimizer_info, list_optimizers

    known: list[str] = [str(name) for name in list_optimizers()]
    if settings.type not in known:
        near = " or ".join(difflib.get_close_matches(settings.type, known, n=3))
        advice = f"did you mean {near}?" if near else "take adamw, or a name of timm.optim.list_optimizers()"
        raise ConfigError(f"optim.type is {settings.type!r}, which is no optimizer of timm: {advice}")
    info = get_optimizer_info(settings.type)
    if info.second_order:
        raise ConfigError(
            f"optim.type={settings.type} needs second derivatives, which a step here has not: take adamw"
        )
    if (settings.beta1 is None) != (settings.beta2 is None):
        raise ConfigError(
            f"optim.beta1 and optim.beta2 go together for optim.type={settings.type}: give both, or neither for its own"
        )
    options: dict[str, Any] = {}  # Any: numbers and pairs of them, by the optimizer's names
    if info.has_eps and settings.eps is not None:
        options["eps"] = settings.eps
    if info.has_betas and info.num_betas == 2 and settings.beta1 is not None and settings.beta2 is not None:
        options["betas"] = (settings.beta1, settings.beta2)
    if isinstance(info.opt_class, type) and issubclass(info.opt_class, Lamb):
        options["max_grad_norm"] = (
            None  # clipping is `optim.max_norm`'s, which knows the gradients of all ranks
        )
    groups = [{**group, "optimizer": settings.type} for group in groups]
    try:
        return create_optimizer_v2(groups, settings.type, settings.lr, settings.weight_decay, **options)
    except (ImportError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"optim.type={settings.type} cannot be used here: {error}; take another, for example adamw"
        ) from error
