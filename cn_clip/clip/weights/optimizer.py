"""Optimizer state in the files' order, mapped by name.

A file numbers parameters as the reference registers them: first those without weight decay, then the others, each in
its model's order. There a ViT block registers attention before its first norm; the library's block does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cn_clip.errors import WeightsError

OptimizerState = Mapping[str, Any]
"""What `Optimizer.state_dict` gives; `Any` since its values are numbers, flags, lists and tensors."""

_BLOCK_ORDER = ("attn", "ln_1", "mlp", "ln_2")
_OWN_SETTINGS = ("params", "foreach", "fused", "capturable", "differentiable")
_NO_DECAY = ("bn", "ln", "bias", "logit_scale")


def parameter_names(model: nn.Module) -> list[str]:
    """Names of all parameters in the reference's order of registration: only ViT blocks differ from ours."""
    ordered = [name.removeprefix("module.") for name, _ in model.named_parameters()]
    blocks: dict[str, list[int]] = {}
    for index, name in enumerate(ordered):
        if match := re.match(r"visual\.transformer\.resblocks\.\d+\.", name):
            blocks.setdefault(match[0], []).append(index)
    for prefix, places in blocks.items():
        inside = sorted((ordered[place] for place in places), key=lambda name: _rank(name[len(prefix) :]))
        for place, name in zip(places, inside, strict=True):
            ordered[place] = name
    return ordered


def _rank(name: str) -> int:
    part = name.split(".")[0]
    return _BLOCK_ORDER.index(part) if part in _BLOCK_ORDER else len(_BLOCK_ORDER)


def split_decay(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(no weight decay, weight decay), each in the given order.

    By substring, as the published models were trained: `LayerNorm.weight` of BERT and `downsample.1.weight` decay.
    """
    no_decay: list[str] = []
    decay: list[str] = []
    for name in names:
        (no_decay if any(part in name for part in _NO_DECAY) else decay).append(name)
    return no_decay, decay


def optimizer_state_to_reference(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """State of our optimizer as the reference would save its own: two groups, its order of parameters.

    A group's settings are those of its first parameter.
    """
    names, own = _own_names(optimizer, model), optimizer.state_dict()
    number_of = {name: number for number, name in enumerate(names)}
    settings_of = {names[number]: group for group in own["param_groups"] for number in group["params"]}
    state: dict[int, Any] = {}
    groups: list[dict[str, Any]] = []
    total = 0
    for part in split_decay(name for name in parameter_names(model) if name in number_of):
        numbers = list(range(total, total + len(part)))
        total += len(part)
        for number, name in zip(numbers, part, strict=True):
            if number_of[name] in own["state"]:
                state[number] = own["state"][number_of[name]]
        settings = settings_of[part[0]] if part else own["param_groups"][0]
        groups.append({**settings, "params": numbers})
    return {"state": state, "param_groups": groups}


def optimizer_state_from_reference(
    state: OptimizerState, optimizer: torch.optim.Optimizer, model: nn.Module
) -> None:
    """Give our optimizer the state and the settings of a file in the reference's order.

    A file of a run that trained every parameter also serves one that trains some of them. Which kernel computes the step
    stays this run's choice.
    """
    names, own = _own_names(optimizer, model), optimizer.state_dict()
    entries: dict[str, Any] = {}
    settings_of: dict[str, dict[str, Any]] = {}
    for group, part in zip(state["param_groups"], _names_in_file(state, names, model), strict=True):
        settings = {name: value for name, value in group.items() if name not in _OWN_SETTINGS}
        for number, name in zip(group["params"], part, strict=True):
            entries[name], settings_of[name] = state["state"].get(number), settings
    groups = []
    for group in own["param_groups"]:
        settings = settings_of[names[group["params"][0]]] if group["params"] else {}
        groups.append({**group, **settings})
    new_state = {number: _copied(entries[name]) for number, name in enumerate(names) if entries[name]}
    optimizer.load_state_dict({"state": new_state, "param_groups": groups})


def _own_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    """Name of each parameter by its number in `optimizer.state_dict()`."""
    name_of = {id(parameter): name.removeprefix("module.") for name, parameter in model.named_parameters()}
    by_number = [name_of[id(p)] for group in optimizer.param_groups for p in group["params"]]
    assert len(set(by_number)) == len(by_number), "a parameter is in two groups of the optimizer"
    return by_number


def _names_in_file(
    state: OptimizerState, trained: Iterable[str], model: nn.Module
) -> tuple[list[str], list[str]]:
    """Names of the parameters in each of a file's two groups: those trained now, else all of the model."""
    everything = parameter_names(model)
    wanted = set(trained)
    sizes = [len(group["params"]) for group in state["param_groups"]]
    shape_of = {name.removeprefix("module."): p.shape for name, p in model.named_parameters()}
    for names in ([name for name in everything if name in wanted], everything):
        parts = split_decay(names)
        if sizes == [len(part) for part in parts] and _shapes_agree(state, parts, shape_of):
            return parts
    raise WeightsError(
        f"the checkpoint's optimizer state is for {' + '.join(map(str, sizes))} parameters, this run trains "
        f"{' + '.join(str(len(part)) for part in split_decay(wanted))} others: another tower or freeze setting; "
        "set run.reset_optimizer=true (--reset-optimizer) to start with a fresh one"
    )


def _shapes_agree(
    state: OptimizerState, parts: tuple[list[str], list[str]], shape_of: Mapping[str, torch.Size]
) -> bool:
    for group, part in zip(state["param_groups"], parts, strict=True):
        for number, name in zip(group["params"], part, strict=True):
            average = state["state"].get(number, {}).get("exp_avg")
            if isinstance(average, Tensor) and average.shape != shape_of[name]:
                return False
    return True


def _copied(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of its own: those read from a file are mapped to it."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in entry.items()}
