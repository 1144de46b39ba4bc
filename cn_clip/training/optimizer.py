"""AdamW over the parameter groups of the reference, in its order, so that its optimizer states fit ours."""

from __future__ import annotations

import torch
from torch import nn

from cn_clip.clip.weights import parameter_names, split_decay
from cn_clip.config.schema import Optim


def build_optimizer(model: nn.Module, settings: Optim) -> torch.optim.AdamW:
    """Group 0 is never decayed (norms, biases, the scale), group 1 is; parameters that take no gradient are in neither."""
    lr, beta1, beta2, eps = settings.lr, settings.beta1, settings.beta2, settings.eps
    assert lr is not None and beta1 is not None and beta2 is not None and eps is not None  # by build_config
    parameters = dict(model.named_parameters())
    trained = [name for name in parameter_names(model) if parameters[name].requires_grad]
    no_decay, decay = split_decay(trained)
    return torch.optim.AdamW(
        [
            {"params": [parameters[name] for name in no_decay], "weight_decay": 0.0},
            {"params": [parameters[name] for name in decay], "weight_decay": settings.weight_decay},
        ],
        lr=lr,
        betas=(beta1, beta2),
        eps=eps,
        fused=next(iter(parameters.values())).device.type in ("cpu", "cuda"),
    )
