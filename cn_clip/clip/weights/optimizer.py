"""Optimizer state in the files' order, mapped by name.

A file numbers parameters as the reference registers them: first those without weight decay, then the others, each in
its model's order. There a ViT block registers attention before its first norm; the library's block does not. Ours name
the parameters beside (`param_names`, torch's own word), so a run of other groups or of other frozen parts finds its own.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cn_clip.clip.weights.layouts import POSITION_KEYS
from cn_clip.errors import WeightsError

logger = logging.getLogger(__name__)

OptimizerState = Mapping[str, Any]
"""What `Optimizer.state_dict` gives; `Any` since its values are numbers, flags, lists and tensors."""

Group = Mapping[str, Any]
"""One of its `param_groups`; `Any` as above."""

_BLOCK_ORDER = ("attn", "ln_1", "mlp", "ln_2")
_NO_DECAY = ("bn", "ln", "bias", "logit_scale")

# a run's own, whatever a file says: which parameters, which kernel, which share of the learning rate, which optimizer
_OWN_SETTINGS = (
    "params",
    "param_names",
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "lr_scale",
    "optimizer",
)

_SHOWN = 3
"""Names that a message lists."""


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


def decays_in_reference(name: str) -> bool:
    """By substring, as the published models were trained: `LayerNorm.weight` of BERT and `downsample.1.weight` decay."""
    return not any(part in name for part in _NO_DECAY)


def split_decay(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """(no weight decay, weight decay), each in the given order."""
    no_decay: list[str] = []
    decay: list[str] = []
    for name in names:
        (decay if decays_in_reference(name) else no_decay).append(name)
    return no_decay, decay


def optimizer_state_to_reference(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """State of our optimizer as the reference would save its own: `state_for_file` of an optimizer beside its model."""
    return state_for_file({**optimizer.state_dict(), "param_groups": _named_groups(optimizer, model)}, model)


def optimizer_state_from_reference(
    state: OptimizerState, optimizer: torch.optim.Optimizer, model: nn.Module
) -> None:
    """Give our optimizer the state and the settings of a file: `state_for_run` of an optimizer beside its model."""
    optimizer.load_state_dict(state_for_run(state, _named_groups(optimizer, model), model))


def state_for_file(own: OptimizerState, model: nn.Module) -> dict[str, Any]:
    """A whole state in torch's layout, groups with `param_names`, as files hold it: two groups, the reference's order.

    A group's settings are those of its first parameter.
    """
    number_of = dict(_numbered(own["param_groups"]))
    group_of = {name: group for group in own["param_groups"] for name in group["param_names"]}
    state: dict[int | str, Any] = _shared(own)
    groups: list[dict[str, Any]] = []
    total = 0
    for part in split_decay(name for name in parameter_names(model) if name in number_of):
        numbers = list(range(total, total + len(part)))
        total += len(part)
        for number, name in zip(numbers, part, strict=True):
            if number_of[name] in own["state"]:
                state[number] = own["state"][number_of[name]]
        settings = dict(group_of[part[0]] if part else own["param_groups"][0])
        settings.pop("lr_scale", None)  # of one parameter, not of the group
        groups.append({**settings, "params": numbers, "param_names": part})
    return {"state": state, "param_groups": groups}


def check_layout(state: object, where: str) -> None:
    """WeightsError for an optimizer's state that is not in torch's layout."""
    groups = state.get("param_groups") if isinstance(state, Mapping) else None
    is_torch_s = (
        isinstance(groups, list)
        and all(isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups)
        and isinstance(state, Mapping)
        and isinstance(state.get("state"), Mapping)
    )
    if not is_torch_s:
        raise WeightsError(
            f"the optimizer state in {where} has not torch's layout: add --reset-optimizer (run.reset_optimizer=true), or "
            "start from its weights with model.init_from"
        )


def state_for_run(
    file: OptimizerState,
    groups: Sequence[Group],
    model: nn.Module,
    shapes: Mapping[str, torch.Size] | None = None,
    *,
    keep_settings: bool = False,
) -> dict[str, Any]:
    """What a file holds, numbered as this run's `groups` (an optimizer's, with `param_names`): whole, in torch's layout.

    What the run trains and the file has no state of is left out, so its averages start at zero, and the log says so.
    Settings are the file's, as in the reference, but for runs with groups of their own or with `keep_settings`. `shapes`
    are those of whole parameters where an engine has cut them up.
    """
    shape_of = shapes or {name.removeprefix("module."): p.shape for name, p in model.named_parameters()}
    _check_same_optimizer(file["param_groups"], groups)
    entries: dict[str, Any] = {}
    group_of: dict[str, Group] = {}
    for group, names in zip(file["param_groups"], _names_in_file(file, groups, model, shape_of), strict=True):
        for number, name in zip(group["params"], names, strict=True):
            group_of[name] = group
            if _fits(file["state"].get(number), shape_of.get(name)):
                entries[name] = file["state"][number]
    wanted = dict(_numbered(groups))
    if file["state"]:
        _log_differences(wanted, entries, group_of)
    state: dict[int | str, Any] = _shared(file)
    state |= {number: _copied(entries[name]) for name, number in wanted.items() if name in entries}
    return {"state": state, "param_groups": _with_settings(groups, group_of, keep_settings=keep_settings)}


def _numbered(groups: Iterable[Group]) -> Iterator[tuple[str, int]]:
    """(name, number) of each parameter, in the order of the groups."""
    names = [name for group in groups for name in group["param_names"]]
    assert len(set(names)) == len(names), "a parameter is in two groups of the optimizer"
    return iter(zip(names, range(len(names)), strict=True))


def _shared(state: OptimizerState) -> dict[int | str, Any]:
    """What an optimizer keeps for all parameters together, by a name in place of a number."""
    return {name: value for name, value in state["state"].items() if isinstance(name, str)}


def _named_groups(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[dict[str, Any]]:
    """The groups of `optimizer.state_dict()` with the names of their parameters."""
    name_of = {id(parameter): name.removeprefix("module.") for name, parameter in model.named_parameters()}
    return [
        {**packed, "param_names": [name_of[id(p)] for p in group["params"]]}
        for packed, group in zip(optimizer.state_dict()["param_groups"], optimizer.param_groups, strict=True)
    ]


def _with_settings(
    groups: Sequence[Group], group_of: Mapping[str, Group], *, keep_settings: bool
) -> list[dict[str, Any]]:
    """The run's groups, numbered, with what the file's have: all, or what the run's have not (counters of steps)."""
    numbered, total = [], 0
    for group in groups:
        names = group["param_names"]
        of_file = next((group_of[name] for name in names if name in group_of), {})
        own = group if keep_settings or "lr_scale" in group else {}
        settings = {name: value for name, value in of_file.items() if name not in _OWN_SETTINGS}
        numbers = list(range(total, total + len(names)))
        total += len(names)
        numbered.append({**group, **settings, **own, "params": numbers})
    return numbered


def _check_same_optimizer(file: Sequence[Group], own: Sequence[Group]) -> None:
    theirs, ours = (groups[0].get("optimizer", "adamw") if groups else "adamw" for groups in (file, own))
    if theirs != ours:
        raise WeightsError(
            f"the checkpoint's optimizer is {theirs}, this run's is {ours} (optim.type): set run.reset_optimizer=true "
            "(--reset-optimizer) to start with a fresh one"
        )


def _names_in_file(
    file: OptimizerState, own: Sequence[Group], model: nn.Module, shape_of: Mapping[str, torch.Size]
) -> list[list[str]]:
    """Names of the parameters in each of a file's groups: those it tells, else those that fit a likely set."""
    told = [group["param_names"] for group in file["param_groups"] if "param_names" in group]
    trained = {name for group in own for name in group["param_names"]}
    if len(told) == len(file["param_groups"]):
        _check_known([name for names in told for name in names], trained, shape_of)
        return told
    sizes = [len(group["params"]) for group in file["param_groups"]]
    for names in _likely_sets(parameter_names(model), trained):
        parts = list(split_decay(names))
        if sizes == [len(part) for part in parts] and _shapes_agree(file, parts, shape_of):
            return parts
    raise WeightsError(
        f"the checkpoint's optimizer state is for {' + '.join(map(str, sizes))} parameters, this run trains "
        f"{' + '.join(str(len(part)) for part in split_decay(trained))} others: {_ADVICE}"
    )


_ADVICE = "another tower or freeze setting; set run.reset_optimizer=true (--reset-optimizer) to start with a fresh one"


def _likely_sets(everything: list[str], trained: set[str]) -> Iterator[list[str]]:
    """What a file without names may be of: what is trained now, all, or all but one tower."""
    yield [name for name in everything if name in trained]
    yield everything
    yield [name for name in everything if not name.startswith("visual.")]
    yield [name for name in everything if not name.startswith(("bert.", "text_projection"))]


def _check_known(told: list[str], trained: set[str], shape_of: Mapping[str, torch.Size]) -> None:
    """A file may be of more or less of this model's parameters, or of adapters that it has not; not of another tower."""
    strange = [name for name in told if name not in shape_of and ".lora_" not in name]
    # adapters split a tower's attention into layers of other names
    adapted = {name.partition(".")[0] for name in shape_of if ".lora_" in name}
    strange = [name for name in strange if name.partition(".")[0] in {"visual", "bert"} - adapted]
    if strange or not trained & set(told):
        raise WeightsError(
            f"the checkpoint's optimizer state is for {len(told)} parameters, {len(trained & set(told))} of the "
            f"{len(trained)} that this run trains among them{_listed(strange, ', not of this model: ')}: {_ADVICE}"
        )


def _shapes_agree(
    file: OptimizerState, parts: Iterable[list[str]], shape_of: Mapping[str, torch.Size]
) -> bool:
    return all(
        name in POSITION_KEYS or _fits(file["state"].get(number, {}), shape_of[name])
        for group, part in zip(file["param_groups"], parts, strict=True)
        for number, name in zip(group["params"], part, strict=True)
    )


def _fits(entry: Mapping[str, Any] | None, shape: torch.Size | None) -> bool:
    """Whether the averages of a parameter have its shape: those of a position embedding or adapter may have changed."""
    if entry is None:
        return False
    average = entry.get("exp_avg")
    return not isinstance(average, Tensor) or average.shape == shape


def _log_differences(
    wanted: Mapping[str, int], entries: Mapping[str, Any], in_file: Mapping[str, Any]
) -> None:
    fresh = [name for name in wanted if name not in entries]
    if fresh:
        logger.info(
            "%d parameters have no optimizer state in the checkpoint, so their averages start at zero%s.",
            len(fresh),
            _listed(fresh, ": "),
        )
    if left_out := [name for name in in_file if name not in wanted]:
        logger.info(
            "The checkpoint's optimizer state of %d parameters that are not trained here is left out%s.",
            len(left_out),
            _listed(left_out, ": "),
        )


def _listed(names: Sequence[str], before: str) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return before + ", ".join(names[:_SHOWN]) + more


def _copied(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of its own: those read from a file are mapped to it."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in entry.items()}
