"""Groups, learning rates and kinds of optimizer; and its state, found by name under other groups or freezing."""

from __future__ import annotations

import copy
import dataclasses
import io
import logging

import pytest
import torch
from torch import nn

from cn_clip.clip.model import CLIP, build_model
from cn_clip.clip.weights import (
    optimizer_state_from_reference,
    optimizer_state_to_reference,
    parameter_names,
    split_decay,
)
from cn_clip.config.schema import Model, Optim
from cn_clip.errors import ConfigError, WeightsError
from cn_clip.training.build import build_config
from cn_clip.training.freezing import freeze_towers
from cn_clip.training.optimizer import build_optimizer, parameter_groups, set_lr

ADAMW = Optim(lr=1e-3, beta1=0.9, beta2=0.98, eps=1e-6)


@pytest.fixture
def model() -> CLIP:
    torch.manual_seed(0)
    return build_model("tiny-vit", "tiny-bert")


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = gradient if p.requires_grad else None
    optimizer.step()


def read_back(state: dict[str, object]) -> dict[str, object]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, object] = torch.load(file, weights_only=True)
    return loaded


def scales(model: CLIP, settings: Optim) -> dict[str, float]:
    return {
        name: group.get("lr_scale", 1.0)
        for group in parameter_groups(model, settings)
        for name in group["param_names"]
    }


def test_the_reference_s_groups_where_nothing_else_is_asked_for(model: CLIP) -> None:
    optimizer = build_optimizer(model, ADAMW)
    no_decay, decay = split_decay(parameter_names(model))
    assert [group["param_names"] for group in optimizer.param_groups] == [no_decay, decay]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.2]
    assert all("lr_scale" not in group for group in optimizer.param_groups)


def test_frozen_parameters_are_in_no_group(model: CLIP) -> None:
    freeze_towers(model, Model(freeze_image=True))
    names = [name for group in parameter_groups(model, ADAMW) for name in group["param_names"]]
    assert not [name for name in names if name.startswith("visual.")]


def test_layer_decay_falls_from_the_head_to_the_stem(model: CLIP) -> None:
    of = scales(model, dataclasses.replace(ADAMW, image_layer_decay=0.5))
    assert of["visual.proj"] == of["visual.ln_post.weight"] == 1
    assert of["visual.transformer.resblocks.1.mlp.c_fc.weight"] == 0.5
    assert of["visual.transformer.resblocks.0.mlp.c_fc.weight"] == 0.25
    assert of["visual.conv1.weight"] == of["visual.class_embedding"] == 0.125
    assert of["logit_scale"] == of["bert.embeddings.word_embeddings.weight"] == of["text_projection"] == 1


def test_a_rate_of_its_own_for_each_tower(model: CLIP) -> None:
    settings = dataclasses.replace(ADAMW, image_lr=1e-4, text_lr=2e-3, text_layer_decay=0.5)
    of = scales(model, settings)
    assert of["visual.proj"] == pytest.approx(0.1)
    assert of["text_projection"] == 2
    assert of["bert.encoder.layer.1.output.dense.bias"] == 1
    assert of["logit_scale"] == 1
    optimizer = build_optimizer(model, settings)
    set_lr(optimizer, 5e-4)
    rates = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert rates["visual.proj"] == pytest.approx(5e-5)
    assert rates["text_projection"] == pytest.approx(1e-3)


def test_an_older_optimizer_s_groups_follow_the_schedule() -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1.0)
    set_lr(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] == 0.25


def test_a_share_of_nothing(model: CLIP) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr is 0"):
        parameter_groups(model, dataclasses.replace(ADAMW, lr=0.0, image_lr=1e-4))


def test_decay_of_its_own_for_each_tower(model: CLIP) -> None:
    groups = parameter_groups(
        model, dataclasses.replace(ADAMW, image_weight_decay=0.05, text_weight_decay=0.0)
    )
    decay = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert decay["visual.proj"] == 0.05
    assert decay["visual.ln_post.weight"] == 0
    assert decay["text_projection"] == decay["bert.embeddings.LayerNorm.weight"] == 0


def test_matrices_decay_and_nothing_else() -> None:
    model = build_model("tiny-resnet", "tiny-bert")
    groups = parameter_groups(model, dataclasses.replace(ADAMW, decay="matrices"))
    decayed = {name for group in groups if group["weight_decay"] for name in group["param_names"]}
    shapes = {name: p.ndim for name, p in model.named_parameters()}
    assert all(shapes[name] >= 2 for name in decayed)
    tables = {name for name, ndim in shapes.items() if ndim >= 2} - decayed
    assert tables == {
        "visual.attnpool.positional_embedding",
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.position_embeddings.weight",
        "bert.embeddings.token_type_embeddings.weight",
    }


@pytest.mark.parametrize("kind", ["lamb", "lion", "adan", "madgrad", "sgd", "lars", "adafactor"])
def test_an_optimizer_of_timm_trains_and_goes_on_from_its_file(model: CLIP, kind: str) -> None:
    settings = Optim(type=kind, lr=1e-3)
    before = copy.deepcopy(model)
    optimizer = build_optimizer(model, settings)
    for seed in range(2):
        take_step(model, optimizer, seed)
    assert all(
        bool((ours != old).any()) for ours, old in zip(model.parameters(), before.parameters(), strict=True)
    )
    other = copy.deepcopy(model)
    other_optimizer = build_optimizer(other, settings)
    state = read_back(optimizer_state_to_reference(optimizer, model))
    optimizer_state_from_reference(state, other_optimizer, other)
    take_step(model, optimizer, 5)
    take_step(other, other_optimizer, 5)
    for (name, ours), theirs in zip(other.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Optim(type="lambb", lr=1e-3), "did you mean .*lamb"),
        (Optim(type="adahessian", lr=1e-3), "second derivatives"),
        (Optim(type="qqqq", lr=1e-3), "take adamw"),
        (Optim(type="lion", lr=1e-3, beta1=0.9), "go together"),
    ],
)
def test_an_optimizer_that_is_none(model: CLIP, settings: Optim, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(model, settings)


@pytest.mark.parametrize(("before", "now"), [("adamw", "lion"), ("lion", "adamw"), ("lamb", "lion")])
def test_another_optimizer_s_state_is_refused(model: CLIP, before: str, now: str) -> None:
    optimizer = build_optimizer(model, dataclasses.replace(ADAMW, type=before))
    take_step(model, optimizer, 0)
    state = optimizer_state_to_reference(optimizer, model)
    with pytest.raises(WeightsError, match=f"optimizer is {before}, this run's is {now}"):
        optimizer_state_from_reference(
            state, build_optimizer(model, dataclasses.replace(ADAMW, type=now)), model
        )


def test_state_finds_its_parameters_in_other_groups(model: CLIP) -> None:
    optimizer = build_optimizer(model, ADAMW)
    take_step(model, optimizer, 0)
    state = read_back(optimizer_state_to_reference(optimizer, model))
    settings = dataclasses.replace(ADAMW, image_layer_decay=0.5, text_lr=1e-4, weight_decay=0.1)
    other = build_optimizer(model, settings)
    assert len(other.param_groups) > 4
    optimizer_state_from_reference(state, other, model)
    for p in model.parameters():
        assert torch.equal(other.state[p]["exp_avg"], optimizer.state[p]["exp_avg"])
    # and what the settings say of the groups stays
    assert {group["weight_decay"] for group in other.param_groups} == {0.0, 0.1}
    back = build_optimizer(model, ADAMW)
    optimizer_state_from_reference(read_back(optimizer_state_to_reference(other, model)), back, model)
    for p in model.parameters():
        assert torch.equal(back.state[p]["exp_avg_sq"], optimizer.state[p]["exp_avg_sq"])
    assert all("lr_scale" not in group for group in back.param_groups)


@pytest.mark.parametrize("named", [True, False])
def test_newly_trained_parameters_start_at_zero_and_the_log_says_so(
    model: CLIP, caplog: pytest.LogCaptureFixture, named: bool
) -> None:
    caplog.set_level(logging.INFO)
    everything = copy.deepcopy(model)
    freeze_towers(model, Model(freeze_image=True))
    optimizer = build_optimizer(model, ADAMW)
    take_step(model, optimizer, 0)
    state = optimizer_state_to_reference(optimizer, model)
    if not named:  # as the reference and older versions write it
        for group in state["param_groups"]:
            del group["param_names"]
    unfrozen = build_optimizer(everything, ADAMW)
    optimizer_state_from_reference(state, unfrozen, everything)
    with_state = {name for name, p in everything.named_parameters() if p in unfrozen.state}
    assert with_state == {name for name in parameter_names(model) if not name.startswith("visual.")}
    num_fresh = len(parameter_names(model)) - len(with_state)
    assert f"{num_fresh} parameters have no optimizer state in the checkpoint" in caplog.text
    take_step(everything, unfrozen, 1)
    steps = {name: int(unfrozen.state[p]["step"]) for name, p in everything.named_parameters()}
    assert steps["visual.proj"] == 1
    assert steps["text_projection"] == 2


def test_first_blocks_frozen_then_trained(model: CLIP) -> None:
    everything = copy.deepcopy(model)
    freeze_towers(model, Model(freeze_image_blocks=1))
    optimizer = build_optimizer(model, ADAMW)
    take_step(model, optimizer, 0)
    unfrozen = build_optimizer(everything, ADAMW)
    optimizer_state_from_reference(optimizer_state_to_reference(optimizer, model), unfrozen, everything)
    averages = {
        name: optimizer.state[p]["exp_avg"] for name, p in model.named_parameters() if p.requires_grad
    }
    for name, p in everything.named_parameters():
        assert (p in unfrozen.state) == (name in averages)
        if name in averages:
            assert torch.equal(unfrozen.state[p]["exp_avg"], averages[name])


def test_another_picture_size_keeps_all_but_the_positions(model: CLIP) -> None:
    optimizer = build_optimizer(model, ADAMW)
    take_step(model, optimizer, 0)
    larger = build_model("tiny-vit", "tiny-bert", image_px=64)
    other = build_optimizer(larger, ADAMW)
    optimizer_state_from_reference(optimizer_state_to_reference(optimizer, model), other, larger)
    without = [name for name, p in larger.named_parameters() if p not in other.state]
    assert without == ["visual.positional_embedding"]


def test_an_optimizer_of_timm_keeps_its_own_defaults() -> None:
    data = {"train": {"type": "lmdb_pairs", "path": "a"}}
    model = {"image": "tiny-vit", "text": "tiny-bert"}
    lion = build_config({"data": data, "model": model, "optim": {"type": "lion"}}).optim
    assert (lion.beta1, lion.beta2, lion.eps) == (None, None, None)
    assert lion.lr is not None
    groups = build_optimizer(build_model("tiny-vit", "tiny-bert"), lion).param_groups
    assert {group["betas"] for group in groups} == {(0.9, 0.99)}
    given = build_config(
        {"data": data, "model": model, "optim": {"type": "lion", "beta1": 0.8, "beta2": 0.9}}
    )
    groups = build_optimizer(build_model("tiny-vit", "tiny-bert"), given.optim).param_groups
    assert {group["betas"] for group in groups} == {(0.8, 0.9)}
