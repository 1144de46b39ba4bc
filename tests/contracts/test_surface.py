"""Paths and names that other people's scripts use: each must be there, or say what takes its place."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch

import cn_clip.clip
from cn_clip.clip.model import build_model

ROOT = Path(__file__).resolve().parents[2]
PATHS = [
    "cn_clip/training/main.py",
    "cn_clip/eval/extract_features.py",
    "cn_clip/eval/make_topk_predictions.py",
    "cn_clip/eval/make_topk_predictions_tr.py",
    "cn_clip/eval/evaluation.py",
    "cn_clip/eval/evaluation_tr.py",
    "cn_clip/eval/transform_ir_annotation_to_tr.py",
    "cn_clip/eval/zeroshot_evaluation.py",
    "cn_clip/preprocess/build_lmdb_dataset.py",
    "cn_clip/preprocess/transform_openai_pretrain_weights.py",
]
NAMES = {
    "cn_clip.clip": "FullTokenizer _tokenizer convert_state_dict load_from_name available_models tokenize image_transform load",
    "cn_clip.clip.utils": "_MODELS _MODEL_INFO _download create_model image_transform tokenize load load_from_name",
    "cn_clip.clip.model": "CLIP convert_weights convert_models_to_fp32 restore_model convert_state_dict resize_pos_embed to_2tuple",
    "cn_clip.clip.bert_tokenizer": "FullTokenizer",
    "cn_clip.training.main": "convert_models_to_fp32 is_master main",
    "cn_clip.training.data": "LMDBDataset get_data get_dataset pad_dataset fetch_resolution DataInfo _preprocess_text",
    "cn_clip.training.scheduler": "cosine_lr",
    "cn_clip.eval.data": "EvalTxtDataset EvalImgDataset get_eval_txt_dataset get_eval_img_dataset get_zeroshot_dataset",
    "cn_clip.eval.evaluation": "compute_score read_submission read_reference report_score",
    "cn_clip.eval.evaluation_tr": "compute_score read_submission read_reference report_score",
}
GONE = ("train", "evaluate", "get_loss", "freeze_vision_bn")
"""Of `cn_clip.training.train`: the loop is another now."""


@pytest.mark.parametrize("path", PATHS)
def test_commands_stay_at_their_paths(path: str) -> None:
    assert "    run_door(main)\n" in (ROOT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("module", NAMES)
def test_public_names_stay(module: str) -> None:
    home = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if getattr(home, name, None) is None] == []


@pytest.mark.parametrize("name", GONE)
def test_a_loop_function_that_is_gone_says_so_at_import(name: str) -> None:
    with pytest.raises(ImportError, match="docs/migration.md"):
        exec(f"from cn_clip.training.train import {name}")  # as a user's program would


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    torch.manual_seed(0)
    torch.save({"state_dict": build_model("tiny-vit", "tiny-bert").state_dict()}, path)
    return str(path)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu")], ids=str)
def test_a_model_on_the_cpu_is_fp32_in_eval_mode(checkpoint: str, device: str | torch.device) -> None:
    """D-16: the reference gave fp16 weights for every device not spelt `cpu`, with dropout on."""
    model, _ = cn_clip.clip.load_from_name(checkpoint, device)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not any(module.training for module in model.modules())
    tokens = cn_clip.clip.tokenize(["同一句话", "另一句话"])
    with torch.no_grad():
        assert torch.equal(model.encode_text(tokens), model.encode_text(tokens))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_cuda_is_fp16(checkpoint: str) -> None:
    model, _ = cn_clip.clip.load_from_name(checkpoint, "cuda")
    assert model.dtype is torch.float16
    assert model.text_projection.dtype is torch.float16
    assert model.logit_scale.dtype is torch.float32


@pytest.mark.parametrize("text", ["", "一", "字" * 500])
def test_tokens_are_framed_cut_and_of_52(text: str) -> None:
    tokens = cn_clip.clip.tokenize(text)
    assert tokens.shape == (1, 52) and tokens.dtype is torch.int64
    assert tokens[0, 0] == 101 and (tokens == 102).sum() == 1
    assert (tokens[0] != 0).sum() == min(len(text), 50) + 2
