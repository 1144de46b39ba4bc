"""The public API beside the reference's: names, signatures and results."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import cn_clip.clip
from cn_clip.clip import utils
from cn_clip.clip.model import build_model

pytestmark = pytest.mark.parity
RunReference = Callable[..., object]

FACTS = """
    import inspect, json, sys
    import cn_clip.clip as clip
    from cn_clip.clip import utils, model
    signatures = {}
    for name in ("available_models", "load_from_name", "load", "tokenize", "image_transform"):
        signatures[name] = list(inspect.signature(getattr(clip, name)).parameters)
    for name in ("create_model", "_download"):
        signatures[name] = list(inspect.signature(getattr(utils, name)).parameters)
    for name in ("convert_weights", "convert_models_to_fp32", "restore_model", "convert_state_dict", "resize_pos_embed"):
        signatures[name] = list(inspect.signature(getattr(model, name)).parameters)
    for name in ("encode_image", "encode_text", "forward", "get_similarity", "set_grad_checkpointing", "__init__"):
        signatures[f"CLIP.{name}"] = list(inspect.signature(getattr(model.CLIP, name)).parameters)
    json.dump({
        "models": clip.available_models(), "_MODELS": utils._MODELS, "_MODEL_INFO": utils._MODEL_INFO,
        "to_2tuple": [list(model.to_2tuple(3)), list(model.to_2tuple((1, 2)))], "signatures": signatures,
    }, open(sys.argv[1], "w"))
"""

LOAD = """
    import sys, torch, cn_clip.clip as clip
    path, out = sys.argv[1:]
    model, preprocess = clip.load_from_name(path, "cpu", vision_model_name="RN50", text_model_name="RBT3-chinese", input_resolution=224)
    model.eval()  # the reference leaves dropout on
    torch.manual_seed(0)
    images, tokens = torch.randn(2, 3, 224, 224), clip.tokenize(["杰尼龟", "皮卡丘和妙蛙种子"])
    with torch.no_grad():
        torch.save({
            "images": images, "tokens": tokens, "similarity": model.get_similarity(images, tokens),
            "features": (model.encode_image(images), model.encode_text(tokens)), "preprocess": repr(preprocess.transforms[0]),
            "dtypes": {n: str(p.dtype) for n, p in model.named_parameters()},
        }, out)
    clip.utils.convert_weights(model)
    torch.save({n: str(t.dtype) for n, t in model.state_dict().items()}, out + ".half")
"""


def test_names_and_signatures(run_reference: RunReference, tmp_path: Path) -> None:
    run_reference(FACTS, tmp_path / "facts.json")
    theirs = json.loads((tmp_path / "facts.json").read_text())
    assert cn_clip.clip.available_models() == theirs["models"]
    assert {name: list(value) for name, value in utils._MODELS.items()} == theirs["_MODELS"]
    assert theirs["_MODEL_INFO"] == utils._MODEL_INFO
    from cn_clip.clip import model

    assert [list(model.to_2tuple(3)), list(model.to_2tuple((1, 2)))] == theirs["to_2tuple"]
    for name, parameters in theirs["signatures"].items():
        home = model.CLIP if name.startswith("CLIP.") else utils if name in vars(utils) else model
        ours = list(inspect.signature(getattr(home, name.removeprefix("CLIP."))).parameters)
        assert ours[: len(parameters)] == parameters, name


def test_load_from_name_on_a_local_file(run_reference: RunReference, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = build_model("RN50", "RBT3-chinese").state_dict()
    path = tmp_path / "checkpoint.pt"
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}, path)
    run_reference(LOAD, path, tmp_path / "theirs.pt")
    theirs = torch.load(tmp_path / "theirs.pt")

    told, preprocess = cn_clip.clip.load_from_name(
        str(path), "cpu", vision_model_name="RN50", text_model_name="RBT3-chinese", input_resolution=224
    )
    assert repr(preprocess.transforms[0]) == theirs["preprocess"]
    assert torch.equal(cn_clip.clip.tokenize(["杰尼龟", "皮卡丘和妙蛙种子"]), theirs["tokens"])
    assert {n: str(p.dtype) for n, p in told.named_parameters()} == theirs["dtypes"]
    guessed, _ = cn_clip.clip.load_from_name(str(path), "cpu")
    for model in (told, guessed):
        assert not model.training
        with torch.no_grad():
            features = model.encode_image(theirs["images"]), model.encode_text(theirs["tokens"])
            similarity = model.get_similarity(theirs["images"], theirs["tokens"])
        for ours, expected in zip(features, theirs["features"], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        for ours, expected in zip(similarity, theirs["similarity"], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=2e-4)
    cn_clip.clip.utils.convert_weights(told)
    assert {n: str(t.dtype) for n, t in told.state_dict().items()} == torch.load(tmp_path / "theirs.pt.half")
