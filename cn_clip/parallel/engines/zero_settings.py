"""What DeepSpeed is told, and what a run cannot have with it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cn_clip.config.schema import Parallel
from cn_clip.errors import ConfigError
from cn_clip.parallel.precision import Precision

Plain = dict[str, Any]
"""A JSON object; `Any`: whatever DeepSpeed's settings hold."""

DECIDED_HERE = {
    "optimizer": "optim", "scheduler": "optim.schedule", "gradient_clipping": "optim.max_norm",
    "train_batch_size": "train.batch_size", "train_micro_batch_size_per_gpu": "train.batch_size",
    "gradient_accumulation_steps": "train.accumulate", "fp16": "train.precision", "bf16": "train.precision",
    "torch_autocast": "train.precision", "amp": "train.precision",
}  # fmt: skip
"""Keys of DeepSpeed's that are refused, and the setting of ours that decides instead."""

GROUPS = ("zero_optimization", "activation_checkpointing", "comms_logger", "aio", "flops_profiler")
"""Keys of DeepSpeed's that hold settings of their own."""


LARGEST_BUCKET = 500_000_000
"""Gradients that are sent at one time, at most: DeepSpeed's own number."""


def deepspeed_settings(
    settings: Parallel, precision: Precision, *, num_trained: int = LARGEST_BUCKET
) -> Plain:
    """Ours, with the user's JSON laid over them. `num_trained`: elements of the parameters that are trained."""
    # the buffer is allocated whole: 2 GB of fp32, however small the model
    bucket_size = max(min(num_trained, LARGEST_BUCKET), 1)
    ours: Plain = {
        "train_micro_batch_size_per_gpu": 1,  # only its own statistics look at it
        "gradient_accumulation_steps": 1,  # the engine says which backward pass is the last
        "gradient_clipping": 0.0,  # its default is 1
        "zero_optimization": {
            "stage": int(settings.engine.removeprefix("zero")),
            "reduce_bucket_size": bucket_size,
        },
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
    if precision.autocast_dtype is not None:
        # it switches off the caller's autocast; gradients of its "safe modules" would be added up in bf16
        dtype = str(precision.autocast_dtype).removeprefix("torch.")
        ours["torch_autocast"] = {"enabled": True, "dtype": dtype, "lower_precision_safe_modules": []}
    if settings.deepspeed_config is None:
        return ours
    return _laid_over(ours, _read(settings.deepspeed_config, settings.engine))


def _read(path: str, engine: str) -> Plain:
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"parallel.deepspeed_config is {path}, which cannot be read ({error.strerror}): give a JSON file of "
            "DeepSpeed settings, or leave it out"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"parallel.deepspeed_config {path} is no JSON ({error}): mend that place"
        ) from error
    if not isinstance(given, dict):
        raise ConfigError(f"parallel.deepspeed_config {path} is no JSON object: put the settings in braces")
    for key, instead in DECIDED_HERE.items():
        if key in given:
            raise ConfigError(
                f"parallel.deepspeed_config {path} sets {key}, which {instead} decides: take it out of the file"
            )
    for key, inner in given.items():
        if key in GROUPS and not isinstance(inner, dict):
            raise ConfigError(
                f"parallel.deepspeed_config {path} sets {key} to {inner!r}: put its settings in braces"
            )
    stage = given.get("zero_optimization", {}).get("stage")
    if stage is not None and f"zero{stage}" != engine:
        raise ConfigError(
            f"parallel.deepspeed_config {path} sets stage {stage}, but parallel.engine is {engine}: make them agree"
        )
    return given


def _laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> Plain:  # Any: as in Plain
    merged = dict(under)
    for key, value in over.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            merged[key] = _laid_over(inner, value)
        else:
            merged[key] = value
    return merged


def check_precision(settings: Parallel, precision: Precision) -> None:
    """Refuse what would need a scaler or weights of DeepSpeed's own."""
    if precision.weights_dtype is not torch.float32 or precision.autocast_dtype is torch.float16:
        raise ConfigError(
            f"train.precision={precision.name} holds weights in half precision or needs a gradient scaler, which "
            f"parallel.engine={settings.engine} has not: take amp_bf16 or fp32, or parallel.engine=fsdp"
        )


def check_optimizer(optimizer: torch.optim.Optimizer, settings: Parallel) -> None:
    """ConfigError for an optimizer that cannot work on parts of weights."""
    if not moves_numbers_alone(optimizer):
        raise ConfigError(
            f"optim.type: {type(optimizer).__name__} looks at whole weights, which parallel.engine="
            f"{settings.engine} cuts up: take adamw, or parallel.engine=fsdp"
        )


def moves_numbers_alone(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer moves each number of a weight by itself, so that weights may be cut up; tried on a small one.

    AdamW does; LAMB, which takes the norm of a weight, does not.
    """
    generator = torch.Generator().manual_seed(0)
    start, slope = torch.randn(2, 4, 4, generator=generator)
    whole, parts = start.clone(), [rows.clone() for rows in start.split(2)]
    for weights, slopes in (([whole], [slope]), (parts, slope.split(2))):
        _step_twin(optimizer, weights, slopes)
    return torch.allclose(whole, torch.cat(parts), rtol=0, atol=1e-7)


def _step_twin(optimizer: torch.optim.Optimizer, weights: Sequence[Tensor], slopes: Sequence[Tensor]) -> None:
    """Two steps of another optimizer of the same kind and settings over `weights`, in place."""
    parameters = [nn.Parameter(weight) for weight in weights]
    twin = object.__new__(type(optimizer))
    twin.__setstate__({**optimizer.__getstate__(), "state": defaultdict(dict), "param_groups": []})
    twin.add_param_group({**optimizer.defaults, "params": parameters, "lr": 0.1})
    for _ in range(2):
        for parameter, slope in zip(parameters, slopes, strict=True):
            parameter.grad = slope.clone()
        twin.step()
