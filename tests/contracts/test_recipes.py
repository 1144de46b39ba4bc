"""The recipes beside the table of the reference's run scripts: what each trained with, and what all of them share."""

from __future__ import annotations

from pathlib import Path

import pytest

from cn_clip.config.load import read_yaml
from cn_clip.config.schema import TrainConfig
from cn_clip.training.build import build_config

ROOT = Path(__file__).resolve().parents[2]
MUGE, FLICKR, COCO = "MUGE", "Flickr30k-CN", "COCO-CN"
SCRIPTS = {  # data, pairs a GPU, lr, warm-up, epochs, steps between validations, run name
    "muge_finetune_vit-b-16_rbt-base": (MUGE, 128, 5e-5, 100, 3, 150, "muge_*_bs128_8gpu"),
    "muge_finetune_vit-b-16_rbt-base_flip": (MUGE, 128, 5e-5, 100, 3, 150, "muge_*_bs128_8gpu_flip"),
    "muge_finetune_vit-b-16_rbt-base_flashattn": (
        MUGE,
        128,
        5e-5,
        100,
        3,
        150,
        "muge_*_bs128_8gpu_flashattn",
    ),
    "muge_finetune_vit-b-16_rbt-base_distillation": (
        MUGE,
        128,
        5e-5,
        100,
        3,
        150,
        "muge_*_bs128_8gpu_distillation",
    ),  # fmt: skip
    "flickr30k_finetune_vit-b-16_rbt-base": (FLICKR, 128, 5e-5, 100, 3, 150, "flickr30k_*_bs128_8gpu"),
    "flickr30k_finetune_vit-b-16_rbt-base_flip": (
        FLICKR,
        128,
        5e-5,
        100,
        3,
        150,
        "flickr30k_*_bs128_8gpu_flip",
    ),
    "coco-cn_finetune_vit-b-16_rbt-base": (COCO, 1024, 3e-5, 6, 20, None, "coco-cn_*_bs1024_8gpu"),
}
"""999999 steps between validations or checkpoints, which is never, are null here."""


@pytest.fixture(params=SCRIPTS, ids=str)
def script(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def config(script: str, monkeypatch: pytest.MonkeyPatch) -> TrainConfig:
    monkeypatch.setenv("DATAPATH", "/data")
    settings = read_yaml(ROOT / "configs" / f"{script}.yaml")
    settings.get("distill", {}).pop("enabled", None)  # refused by this version; the rest of the recipe stands
    return build_config(settings)


def test_a_recipe_trains_as_its_script_did(script: str, config: TrainConfig) -> None:
    data, batch_size, lr, warmup_steps, epochs, valid_steps, name = SCRIPTS[script]
    assert config.data.train is not None and config.data.valid is not None
    assert config.data.train.options.path == f"/data/datasets/{data}/lmdb/train"
    assert config.data.valid.options.path == f"/data/datasets/{data}/lmdb/valid"
    assert (config.train.batch_size, config.train.max_epochs, config.train.max_steps) == (
        batch_size,
        epochs,
        None,
    )
    assert (config.optim.lr, config.optim.warmup_steps) == (lr, warmup_steps)
    assert (config.validate.batch_size, config.validate.every_steps) == (128, valid_steps)
    assert config.run.name == name.replace("*", "finetune_vit-b-16_roberta-base")


def test_what_all_recipes_share(config: TrainConfig) -> None:
    assert (config.model.image, config.model.text) == ("ViT-B-16", "RoBERTa-wwm-ext-base-chinese")
    assert config.model.init_from == "/data/pretrained_weights/clip_cn_vit-b-16.pt"
    assert config.run.logs_dir == "/data/experiments/"
    assert (config.checkpoint.every_epochs, config.checkpoint.every_steps) == (1, None)
    assert (config.log.every_steps, config.log.batch_accuracy) == (1, True)
    assert (config.data.context_length, config.train.accumulate) == (52, 1)
    assert config.data.augment.type == "autoaugment"
    assert config.optim.weight_decay == 0.001
    assert config.validate.every_epochs == 1


def test_what_sets_siblings_apart(script: str, config: TrainConfig) -> None:
    assert config.model.mask_ratio == (0.5 if script.endswith("_flip") else 0)
    assert config.model.flash_attention == script.endswith("_flashattn")
    assert config.model.recompute == script.startswith("coco-cn")
    assert (config.distill.teacher is not None) == script.endswith("_distillation")


def test_scripts_name_their_interpreter(script: str) -> None:
    """The reference's first lines end at `env`, so running one without `bash` fails."""
    lines = (ROOT / "run_scripts" / f"{script}.sh").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "#!/usr/bin/env bash"
    assert not [line for line in lines if "XX.XX" in line or "torch.distributed.launch" in line]
