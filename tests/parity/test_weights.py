"""Files the reference writes are read, and it reads ours: weights in every layout, optimizer state in both directions."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cn_clip.clip.model import CLIP, build_model
from cn_clip.clip.presets import MODEL_CONFIGS
from cn_clip.clip.weights import (
    load_image_tower,
    load_into,
    load_text_tower,
    model_weights,
    optimizer_state_from_reference,
    optimizer_state_to_reference,
    parameter_names,
    read_checkpoint,
    split_decay,
)
from cn_clip.clip.weights.layouts import convert_state_dict, resize_pos_embed

pytestmark = pytest.mark.parity
RunReference = Callable[..., object]

IMAGES = ["tiny-vit", "tiny-resnet"]

# what the reference's trainer does with its model, optimizer, schedule and checkpoint, without its data and GPU
REFERENCE = """
    import json, sys, zlib
    import torch
    from torch import nn, optim
    from cn_clip.clip.model import CLIP, convert_state_dict, resize_pos_embed, restore_model
    from cn_clip.training.scheduler import cosine_lr

    class Wrapped(nn.Module):  # names as DistributedDataParallel gives them
        def __init__(self, module):
            super().__init__()
            self.module = module

    def build(settings):
        torch.manual_seed(0)
        return Wrapped(CLIP(**json.loads(settings)))

    def make_optimizer(model):
        exclude = lambda n: "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n
        named = list(model.named_parameters())
        return optim.AdamW([
            {"params": [p for n, p in named if exclude(n)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not exclude(n)], "weight_decay": 0.2},
        ], lr=1e-3, betas=(0.9, 0.98), eps=1e-6)

    def fill_gradients(model, step):
        for name, p in model.named_parameters():
            seed = zlib.crc32(name.removeprefix("module.").encode()) + step
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
"""

SAVE = (
    REFERENCE
    + """
    settings, folder = sys.argv[1], sys.argv[2]
    model = build(settings)
    optimizer = make_optimizer(model)
    schedule = cosine_lr(optimizer, 1e-3, 2, 100)
    for step in range(4):  # past the warm-up, where the learning rate becomes a numpy scalar
        schedule(step)
        fill_gradients(model, step)
        optimizer.step()
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    width = model.module.bert_config.hidden_size
    pooler = {"module.bert.pooler.dense.weight": torch.zeros(width, width), "module.bert.pooler.dense.bias": torch.zeros(width)}
    checkpoint = {"epoch": 1, "step": 4, "name": "run", "state_dict": {**weights, **pooler}, "optimizer": optimizer.state_dict()}
    torch.save(checkpoint, f"{folder}/prefixed.pt")
    bare = {n.removeprefix("module."): t for n, t in weights.items()}
    torch.save({"state_dict": bare}, f"{folder}/bare.pt")
    torch.save(bare, f"{folder}/state_dict.pt")
    torch.save({"state_dict": convert_state_dict(dict(weights))}, f"{folder}/flash_prefixed.pt")
    torch.save({"state_dict": convert_state_dict(dict(bare))}, f"{folder}/flash.pt")
    schedule(4)
    fill_gradients(model, 4)
    optimizer.step()
    torch.save({n.removeprefix("module."): t for n, t in model.state_dict().items()}, f"{folder}/next.pt")
"""
)

CONTINUE = (
    REFERENCE
    + """
    settings, ours, out = sys.argv[1:]
    checkpoint = torch.load(ours, map_location="cpu")
    model = build(settings)
    model.load_state_dict({n: t for n, t in checkpoint["state_dict"].items() if "bert.pooler" not in n})
    optimizer = make_optimizer(model)
    optimizer.load_state_dict(checkpoint["optimizer"])
    fill_gradients(model, 4)
    optimizer.step()
    torch.save({n.removeprefix("module."): t for n, t in model.state_dict().items()}, out)
"""
)


def settings_of(image: str) -> str:
    settings: dict[str, object] = {}
    for name in (image, "tiny-bert"):
        settings |= json.loads((MODEL_CONFIGS / f"{name}.json").read_text())
    return json.dumps(settings)


@pytest.fixture(scope="module")
def saved(run_reference: RunReference, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the files the reference saved for an image tower."""
    folders: dict[str, Path] = {}

    def save(image: str) -> Path:
        if image not in folders:
            folders[image] = tmp_path_factory.mktemp(image)
            run_reference(SAVE, settings_of(image), folders[image])
        return folders[image]

    return save


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("name", ["prefixed", "bare", "state_dict", "flash_prefixed", "flash"])
def test_every_layout_is_read(saved: Callable[[str], Path], image: str, name: str) -> None:
    folder = saved(image)
    expected = torch.load(folder / "state_dict.pt")
    weights = model_weights(folder / f"{name}.pt")
    assert weights.keys() == expected.keys()
    model = build_model(image, "tiny-bert")
    load_into(model, weights, name)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_numpy_numbers_in_the_optimizer_are_read(saved: Callable[[str], Path]) -> None:
    path = saved("tiny-vit") / "prefixed.pt"
    with pytest.raises(Exception, match="numpy"):  # the file does hold them
        torch.load(path, weights_only=True)
    group = read_checkpoint(path)["optimizer"]["param_groups"][0]
    assert type(group["lr"]) is float
    assert 0 < group["lr"] < 1e-3


@pytest.mark.parametrize("image", IMAGES)
def test_our_step_after_the_reference_s_checkpoint(saved: Callable[[str], Path], image: str) -> None:
    folder = saved(image)
    checkpoint = read_checkpoint(folder / "prefixed.pt")
    model = build_model(image, "tiny-bert")
    load_into(model, model_weights(checkpoint), "the checkpoint")
    optimizer = library_order_optimizer(model)
    optimizer_state_from_reference(checkpoint["optimizer"], optimizer, model)
    expected = torch.load(folder / "next.pt")
    learning_rate = float(
        0.5 * (1 + torch.cos(torch.tensor((4 - 2) / (100 - 2) * torch.pi, dtype=torch.float64))) * 1e-3
    )
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    take_step(model, optimizer, 4)
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-7, atol=1e-9, msg=key)


@pytest.mark.parametrize("image", IMAGES)
def test_the_reference_s_step_after_our_checkpoint(
    run_reference: RunReference, tmp_path: Path, image: str
) -> None:
    torch.manual_seed(3)
    model = build_model(image, "tiny-bert")
    optimizer = library_order_optimizer(model)
    for step in range(4):
        take_step(model, optimizer, step)
    state_dict = {f"module.{name}": tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer_state = optimizer_state_to_reference(optimizer, model)
    torch.save(
        {"epoch": 1, "step": 4, "name": "run", "state_dict": state_dict, "optimizer": optimizer_state},
        tmp_path / "ours.pt",
    )
    run_reference(CONTINUE, settings_of(image), tmp_path / "ours.pt", tmp_path / "next.pt")
    take_step(model, optimizer, 4)
    expected = torch.load(tmp_path / "next.pt")
    for key, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-7, atol=1e-9, msg=key)


@pytest.mark.parametrize("image", [*IMAGES, "ViT-B-32", "RN50"])
def test_parameter_order_and_groups(run_reference: RunReference, tmp_path: Path, image: str) -> None:
    run_reference(
        REFERENCE
        + """
    with torch.device("meta"):
        model = build(sys.argv[1])
    names = {id(p): n.removeprefix("module.") for n, p in model.named_parameters()}
    groups = [[names[id(p)] for p in group["params"]] for group in make_optimizer(model).param_groups]
    json.dump({"names": list(names.values()), "groups": groups}, open(sys.argv[2], "w"))
    """,
        settings_of(image),
        tmp_path / "names.json",
    )
    theirs = json.loads((tmp_path / "names.json").read_text())
    with torch.device("meta"):
        model = build_model(image, "tiny-bert")
    assert parameter_names(model) == theirs["names"]
    assert list(split_decay(parameter_names(model))) == theirs["groups"]


def library_order_optimizer(model: CLIP) -> torch.optim.AdamW:
    """Groups in the order the library registers parameters, so that only a mapping by name can be right."""
    parameters = dict(model.named_parameters())
    no_decay, decay = split_decay(parameters)
    groups = [
        {"params": [parameters[n] for n in no_decay], "weight_decay": 0.0},
        {"params": [parameters[n] for n in decay], "weight_decay": 0.2},
    ]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6)


def take_step(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """One step with gradients that depend on the parameter's name, so that a swapped pair shows."""
    for name, p in model.named_parameters():
        p.grad = torch.randn(
            p.shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode()) + step)
        )
    optimizer.step()


@pytest.mark.parametrize("image", IMAGES)
def test_towers_from_openai_and_bert_files(
    run_reference: RunReference, saved: Callable[[str], Path], tmp_path: Path, image: str
) -> None:
    """The reference rounds the whole model to fp16 when it does this; ours is compared with that rounding applied."""
    weights = torch.load(saved(image) / "state_dict.pt")
    openai = {n: t.half() for n, t in weights.items() if n.startswith("visual.")}
    openai |= {"logit_scale": torch.tensor(3.5), "positional_embedding": torch.zeros(77, 8)}
    bert = {n: t for n, t in weights.items() if n.startswith("bert.")} | {
        "cls.predictions.bias": torch.zeros(3)
    }
    torch.save(openai, tmp_path / "openai.pt")
    torch.save(bert, tmp_path / "bert.pt")
    run_reference(
        REFERENCE
        + """
    settings, folder = sys.argv[1:]
    model = build(settings).module
    restore_model(model, torch.load(f"{folder}/openai.pt"), torch.load(f"{folder}/bert.pt"), False)
    torch.save(model.float().state_dict(), f"{folder}/restored.pt")
    """,
        settings_of(image),
        tmp_path,
    )
    restored = torch.load(tmp_path / "restored.pt")
    model = build_model(image, "tiny-bert")
    load_image_tower(model, tmp_path / "openai.pt")
    load_text_tower(model, tmp_path / "bert.pt")
    for name, ours in model.state_dict().items():
        if name != "text_projection":  # fresh in both
            expected = restored[name]
            assert torch.equal(
                ours.half().float() if name.startswith("bert.") else ours, expected.to(ours.dtype)
            ), name


@pytest.mark.parametrize(("old", "new"), [(7, 4), (4, 6), (2, 4)])
def test_position_embedding_is_stretched_by_the_reference_s_rule(
    run_reference: RunReference, tmp_path: Path, old: int, new: int
) -> None:
    torch.manual_seed(0)
    embedding = torch.randn(1 + old * old, 32)
    torch.save(embedding, tmp_path / "old.pt")
    settings = json.loads(settings_of("tiny-vit")) | {"image_resolution": 8 * new}
    run_reference(
        REFERENCE
        + """
    state_dict = {"module.visual.positional_embedding": torch.load(sys.argv[2])}
    resize_pos_embed(state_dict, build(sys.argv[1]), prefix="module.")
    torch.save(state_dict["module.visual.positional_embedding"], sys.argv[3])
    """,
        json.dumps(settings),
        tmp_path / "old.pt",
        tmp_path / "new.pt",
    )
    state_dict = {"module.visual.positional_embedding": embedding}
    resize_pos_embed(state_dict, build_model("tiny-vit", "tiny-bert", image_px=8 * new), prefix="module.")
    assert torch.equal(state_dict["module.visual.positional_embedding"], torch.load(tmp_path / "new.pt"))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_convert_state_dict(saved: Callable[[str], Path], prefix: str) -> None:
    folder = saved("tiny-vit")
    plain = {prefix + name: tensor for name, tensor in torch.load(folder / "state_dict.pt").items()}
    flash: dict[str, Any] = torch.load(folder / f"flash{'_prefixed' if prefix else ''}.pt")["state_dict"]
    assert_same(convert_state_dict(dict(plain)), flash)
    assert_same(convert_state_dict(dict(flash)), plain)  # without a prefix the reference raises KeyError here


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
