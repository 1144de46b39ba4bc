"""Features, similarity, loss and gradients of the reference's own CLIP class and of ours, on the same weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cn_clip.clip.model import CLIP, build_model
from cn_clip.clip.presets import MODEL_CONFIGS
from cn_clip.clip.weights import load_into

pytestmark = pytest.mark.parity

TINY = [("tiny-vit", "tiny-bert"), ("tiny-resnet", "tiny-bert")]
PUBLISHED = [("ViT-B-32", "RoBERTa-wwm-ext-base-chinese"), ("RN50", "RBT3-chinese")]
SLOW = [pytest.param(*towers, marks=pytest.mark.slow) for towers in PUBLISHED]
EXHAUSTIVE = [pytest.param(*towers, marks=pytest.mark.exhaustive) for towers in PUBLISHED]

REFERENCE = """
    import json, sys
    import torch
    import torch.nn.functional as F
    from cn_clip.clip.model import CLIP
    settings, out, dtype, mask_ratio = json.loads(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3]), float(sys.argv[4])
    torch.manual_seed(0)
    model = CLIP(**settings)
    for parameter in model.parameters():  # fresh weights hold zeros (bn3) that would hide a branch
        parameter.data += 0.02 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    weights = {name: t.clone() for name, t in model.state_dict().items()}
    model.to(dtype)
    images = torch.randn(4, 3, settings["image_resolution"], settings["image_resolution"], dtype=dtype)
    tokens = torch.randint(1, settings["vocab_size"], (4, 24))
    for row, length in enumerate((4, 24, 9, 12)):
        tokens[row, length:] = 0
    model.eval()
    with torch.no_grad():
        features = model.encode_image(images), model.encode_text(tokens)
        both = model(images, tokens)
        alone = model(images, None), model(None, tokens)
        similarity = model.get_similarity(images, tokens)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.manual_seed(1)
    image, text, scale = model(images, tokens, mask_ratio)
    logits = scale * image @ text.t()
    target = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
    loss.backward()
    torch.save({
        "weights": weights, "images": images, "tokens": tokens, "features": features, "both": both, "alone": alone,
        "similarity": similarity, "loss": loss.detach(),
        "gradients": {name: p.grad for name, p in model.named_parameters()},
        "buffers": dict(model.named_buffers()), "names": [name for name, _ in model.named_parameters()],
    }, out)
"""

RunReference = Callable[..., object]
Ran = dict[str, Any]  # Any: tensors, tuples and dicts of them


def reference_settings(image: str, text: str) -> dict[str, object]:
    """Arguments of the reference's CLIP, from our two presets."""
    settings: dict[str, object] = {}
    for name in (image, text):
        settings |= json.loads((MODEL_CONFIGS / f"{name}.json").read_text())
    return {name: value for name, value in settings.items() if name != "training"}


@pytest.fixture(scope="module")
def run_both(
    run_reference: RunReference, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Ran, CLIP]]:
    """What the reference computed, and our model with its weights; each pair of towers runs there once."""
    cache: dict[tuple[str, ...], Path] = {}

    def run(image: str, text: str, dtype: str = "float32", mask_ratio: float = 0.0) -> tuple[Ran, CLIP]:
        key = (image, text, dtype, str(mask_ratio))
        if key not in cache:
            cache[key] = tmp_path_factory.mktemp("reference") / "ran.pt"
            run_reference(
                REFERENCE, json.dumps(reference_settings(image, text)), cache[key], dtype, mask_ratio
            )
        ran = torch.load(cache[key], mmap=True)
        model = build_model(image, text)
        load_into(model, ran["weights"], "the reference's weights")
        return ran, model.to(getattr(torch, dtype)).eval()

    return run


@pytest.mark.parametrize(("image", "text"), [*TINY, *SLOW])
def test_features_and_similarity(run_both: Callable[..., tuple[Ran, CLIP]], image: str, text: str) -> None:
    ran, model = run_both(image, text)
    images, tokens = ran["images"], ran["tokens"]
    with torch.no_grad():
        features = model.encode_image(images), model.encode_text(tokens)
        both = model(images, tokens)
        alone = model(images, None), model(None, tokens)
        similarity = model.get_similarity(images, tokens)
    for ours, theirs in zip(
        (*features, *both, *alone), (*ran["features"], *ran["both"], *ran["alone"]), strict=True
    ):
        assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max()))
    for ours, theirs in zip(similarity, ran["similarity"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-4)  # cosines times a scale of 14


@pytest.mark.parametrize(("image", "text"), [*TINY, *EXHAUSTIVE])
def test_loss_and_gradients_in_fp32(run_both: Callable[..., tuple[Ran, CLIP]], image: str, text: str) -> None:
    ran, model = run_both(image, text)
    loss = train_step(model, ran, 0.0)
    assert abs(float(loss - ran["loss"])) <= 1e-6 * max(1.0, float(ran["loss"]))
    assert gradient_difference(model, ran["gradients"]) <= 1e-4


@pytest.mark.parametrize(("image", "text"), [("tiny-resnet", "tiny-bert"), EXHAUSTIVE[1]])
def test_gradients_in_fp64(run_both: Callable[..., tuple[Ran, CLIP]], image: str, text: str) -> None:
    ran, model = run_both(image, text, "float64")
    loss = train_step(model, ran, 0.0)
    assert abs(float(loss - ran["loss"])) <= 1e-10
    assert gradient_difference(model, ran["gradients"]) <= 1e-10


def test_masked_patches_are_the_reference_s(run_both: Callable[..., tuple[Ran, CLIP]]) -> None:
    ran, model = run_both("tiny-vit", "tiny-bert", mask_ratio=0.4)
    assert abs(float(train_step(model, ran, 0.4) - ran["loss"])) <= 1e-6
    assert gradient_difference(model, ran["gradients"]) <= 1e-4
    unmasked, _ = run_both("tiny-vit", "tiny-bert")
    assert abs(float(unmasked["loss"] - ran["loss"])) > 1e-3, (
        "the masked loss must differ, or the test shows nothing"
    )


def test_batchnorm_statistics_after_a_step(run_both: Callable[..., tuple[Ran, CLIP]]) -> None:
    ran, model = run_both("tiny-resnet", "tiny-bert")
    train_step(model, ran, 0.0)
    buffers = dict(model.named_buffers())
    for name, theirs in ran["buffers"].items():
        torch.testing.assert_close(buffers[name], theirs, rtol=1e-5, atol=1e-6)


def train_step(model: CLIP, ran: Ran, mask_ratio: float) -> Tensor:
    """Symmetric cross entropy with dropout off, its gradients left in the model."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    torch.manual_seed(1)
    image_BE, text_BE, scale = model(ran["images"], ran["tokens"], mask_ratio)
    logits = scale * image_BE @ text_BE.t()
    target = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
    loss.backward()
    return loss.detach()


def gradient_difference(model: CLIP, theirs: dict[str, Tensor]) -> float:
    """Norm of the difference over the reference's global norm; the same parameters must have one."""
    ours = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert ours.keys() == theirs.keys()
    apart = sum(float((ours[name] - theirs[name]).double().norm() ** 2) for name in ours)
    return (apart / sum(float(g.double().norm() ** 2) for g in theirs.values())) ** 0.5
