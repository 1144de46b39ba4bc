import copy

import pytest
import torch
from torch import Tensor

from cn_clip.clip.model import CLIP, build_model
from cn_clip.clip.weights import (
    optimizer_state_from_reference,
    optimizer_state_to_reference,
    parameter_names,
    split_decay,
)
from cn_clip.errors import WeightsError


@pytest.fixture
def model() -> CLIP:
    torch.manual_seed(0)
    return build_model("tiny-vit", "tiny-bert")


def make_optimizer(model: CLIP) -> torch.optim.AdamW:
    """Two groups in the library's order of registration, of what is trained."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    no_decay, decay = split_decay(trained)
    groups = [
        {"params": [trained[n] for n in no_decay], "weight_decay": 0.0},
        {"params": [trained[n] for n in decay], "weight_decay": 0.2},
    ]
    return torch.optim.AdamW(groups, lr=1e-3)


def take_step(model: CLIP, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()


def test_order_of_a_vit_block(model: CLIP) -> None:
    block = [
        n.split(".")[4] for n in parameter_names(model) if n.startswith("visual.transformer.resblocks.1.")
    ]
    assert block == ["attn"] * 4 + ["ln_1"] * 2 + ["mlp"] * 4 + ["ln_2"] * 2
    assert parameter_names(model)[:3] == ["text_projection", "logit_scale", "visual.class_embedding"]
    assert sorted(parameter_names(model)) == sorted(name for name, _ in model.named_parameters())


def test_decay_is_decided_by_substring() -> None:
    undecayed = [
        "visual.bn1.weight",
        "visual.ln_post.bias",
        "bert.x.dense.bias",
        "logit_scale",
        "visual.ln_pre.weight",
    ]
    decayed = [
        "bert.embeddings.LayerNorm.weight",
        "visual.layer1.0.downsample.1.weight",
        "visual.class_embedding",
        "text_projection",
    ]
    assert split_decay(undecayed + decayed) == (undecayed, decayed)


def test_a_step_after_a_round_trip_is_the_same(model: CLIP) -> None:
    optimizer = make_optimizer(model)
    for seed in range(3):
        take_step(model, optimizer, seed)
    state = optimizer_state_to_reference(optimizer, model)
    other = copy.deepcopy(model)
    other_optimizer = make_optimizer(other)
    optimizer_state_from_reference(state, other_optimizer, other)
    take_step(model, optimizer, 9)
    take_step(other, other_optimizer, 9)
    for (name, ours), theirs in zip(other.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_numbers_follow_the_reference_s_order(model: CLIP) -> None:
    optimizer = make_optimizer(model)
    take_step(model, optimizer, 0)
    state = optimizer_state_to_reference(optimizer, model)
    names = [name for part in split_decay(parameter_names(model)) for name in part]
    parameters = dict(model.named_parameters())
    assert [n for group in state["param_groups"] for n in group["params"]] == list(range(len(names)))
    for number, name in enumerate(names):
        assert torch.equal(state["state"][number]["exp_avg"], optimizer.state[parameters[name]]["exp_avg"]), (
            name
        )


def test_settings_come_from_the_file_and_the_kernel_from_the_run(model: CLIP) -> None:
    optimizer = make_optimizer(model)
    take_step(model, optimizer, 0)
    for group in optimizer.param_groups:
        group["lr"] = 0.125
    state = optimizer_state_to_reference(optimizer, model)
    fused = torch.optim.AdamW([{"params": g["params"]} for g in optimizer.param_groups], lr=1e-3, fused=True)
    optimizer_state_from_reference(state, fused, model)
    assert [(g["lr"], g["weight_decay"], g["fused"]) for g in fused.param_groups] == [
        (0.125, 0.0, True),
        (0.125, 0.2, True),
    ]
    take_step(model, fused, 1)


def test_before_the_first_step_there_is_no_state(model: CLIP) -> None:
    optimizer = make_optimizer(model)
    state = optimizer_state_to_reference(optimizer, model)
    assert state["state"] == {}
    optimizer_state_from_reference(state, optimizer, model)
    assert not optimizer.state


def test_loaded_averages_are_not_the_file_s_tensors(model: CLIP) -> None:
    optimizer = make_optimizer(model)
    take_step(model, optimizer, 0)
    state = optimizer_state_to_reference(optimizer, model)
    kept = {number: entry["exp_avg"].clone() for number, entry in state["state"].items()}
    other = copy.deepcopy(model)
    other_optimizer = make_optimizer(other)
    optimizer_state_from_reference(state, other_optimizer, other)
    take_step(other, other_optimizer, 1)
    assert all(torch.equal(state["state"][number]["exp_avg"], average) for number, average in kept.items())


def freeze_image_tower(model: CLIP) -> None:
    for p in model.visual.parameters():
        p.requires_grad_(False)


def test_state_of_everything_serves_a_run_that_freezes_a_tower(model: CLIP) -> None:
    optimizer = make_optimizer(model)
    take_step(model, optimizer, 0)
    state = optimizer_state_to_reference(optimizer, model)
    freeze_image_tower(model)
    frozen = make_optimizer(model)
    optimizer_state_from_reference(state, frozen, model)
    averages: dict[Tensor, Tensor] = {p: entry["exp_avg"] for p, entry in optimizer.state.items()}
    assert frozen.state
    for p, entry in frozen.state.items():
        assert torch.equal(entry["exp_avg"], averages[p])
    assert optimizer_state_to_reference(frozen, model)["state"].keys() == set(range(len(frozen.state)))


@pytest.mark.parametrize("named", [True, False])
def test_state_of_another_model(model: CLIP, named: bool) -> None:
    torch.manual_seed(0)
    other = build_model("tiny-resnet", "tiny-bert")
    optimizer = make_optimizer(other)
    take_step(other, optimizer, 0)
    state = optimizer_state_to_reference(optimizer, other)
    if not named:
        for group in state["param_groups"]:
            del group["param_names"]
    with pytest.raises(WeightsError, match=r"another tower or freeze setting.*reset_optimizer"):
        optimizer_state_from_reference(state, make_optimizer(model), model)
