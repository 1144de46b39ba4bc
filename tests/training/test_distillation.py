"""Learning from a teacher: kinds of teachers, what they add to loss and gradients, and that files do not show it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

from cn_clip.clip.model import CLIP, build_model
from cn_clip.config.schema import Distill, Parallel
from cn_clip.data.batches import PairBatch
from cn_clip.data.feature_store import FeatureWriter
from cn_clip.errors import ConfigError, WeightsError
from cn_clip.losses.pair import contrastive
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.wrap import wrap
from cn_clip.training.contrastive_task import ContrastiveTask
from cn_clip.training.distillation import Distillation
from cn_clip.training.encoding import Encoding
from cn_clip.training.teachers import open_teacher
from cn_clip.training.teachers.checkpoint import CheckpointTeacher
from tests.training.conftest import Train

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, 0, CPU)


def batch(num: int = 8) -> PairBatch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.arange(num)
    return PairBatch(
        torch.randint(0, 256, (num, 3, 32, 32), generator=generator, dtype=torch.uint8),
        torch.randint(1, 1000, (num, 7), generator=generator),
        *(ids,) * 5,
    )


def model(seed: int) -> CLIP:
    torch.manual_seed(seed)
    return build_model("tiny-vit", "tiny-bert")


def gradients(settings: Distill, cuts: int) -> tuple[float, dict[str, torch.Tensor]]:
    student, whole = model(0), batch()
    engine = wrap(student, Parallel(), Precision("fp32", CPU), ALONE)
    engine.set_optimizer(torch.optim.SGD(student.parameters()))
    teacher = CheckpointTeacher(model(1).eval().requires_grad_(False), 32)
    options = contrastive.Options()
    task = ContrastiveTask(
        engine, contrastive.build(options), options, Encoding(seed=3, mask_ratio=lambda step: 0.5),
        distillation=Distillation(teacher, settings),
    )  # fmt: skip
    task.train_mode()
    report = task.accumulate_gradients(whole.split([8 // cuts] * cuts, pad_id=0), step=1)
    return report.loss, {name: p.grad.clone() for name, p in student.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["features", "similarity"])
def test_gradients_are_those_of_the_whole_loss_however_it_is_cut(kind: Any) -> None:
    settings = Distill(enabled=True, type=kind, weight=0.7)
    (one_loss, one), (cut_loss, cut) = gradients(settings, 1), gradients(settings, 4)
    plain_loss, plain = gradients(Distill(enabled=True, type=kind, weight=0.0), 1)
    assert cut_loss == pytest.approx(one_loss, abs=1e-6) and one_loss > plain_loss + 0.1
    difference = sum(float((cut[name] - gradient).double().norm() ** 2) for name, gradient in one.items())
    assert difference**0.5 < 1e-5 * sum(float(g.double().norm() ** 2) for g in one.values()) ** 0.5
    assert not torch.allclose(one["visual.proj"], plain["visual.proj"], rtol=1e-2)


def test_feature_distance_is_the_reference_s_number() -> None:
    student, teacher = torch.randn(6, 16), torch.randn(6, 16)
    settings = Distill(enabled=True, weight=0.5)
    with_teacher = Distillation.own_loss
    taught = type("T", (), {"image_BF": teacher})()
    found = with_teacher(Distillation(None, settings), student, taught, num_pairs=6)  # type: ignore[arg-type]  # asks no teacher
    assert float(found) == pytest.approx(0.5 * float(1 - F.cosine_similarity(teacher, student, dim=1).mean()))


def save(path: Path, made: CLIP) -> Path:
    torch.save({"state_dict": {f"module.{k}": v for k, v in made.state_dict().items()}}, path)
    return path


def test_a_checkpoint_teaches_at_its_own_size(tmp_path: Path) -> None:
    torch.manual_seed(1)
    large = build_model("tiny-vit", "tiny-bert", 64)
    teacher = open_teacher(str(save(tmp_path / "teacher.pt", large)), CPU)
    taught = teacher(batch(), captions=True)
    assert taught.image_BF.shape == (8, 16) and taught.text_BF is not None
    torch.testing.assert_close(taught.image_BF.norm(dim=1), torch.ones(8))
    own_size = CheckpointTeacher(model(1).eval(), 32)(batch(), captions=False).image_BF
    expected = model(1).eval().encode_image(batch().images_BCHW)
    torch.testing.assert_close(own_size, F.normalize(expected, dim=1))


def hf_folder(path: Path) -> CLIPModel:
    torch.manual_seed(4)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 50, "max_position_embeddings": 8},
        vision_config={**tower, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    made = CLIPModel(config).eval()
    made.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_processor_type": "CLIPImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
        )
    )
    return made


def test_a_hugging_face_folder_teaches(tmp_path: Path) -> None:
    made = hf_folder(tmp_path / "hf")
    teacher = open_teacher(str(tmp_path / "hf"), CPU)
    grey = batch(2).each(lambda t: torch.full_like(t, 128) if t.ndim == 4 else t)
    pixels = torch.full((2, 3, 16, 16), (128 / 255 - 0.5) / 0.25)
    said = made.get_image_features(pixel_values=pixels)
    expected = said if isinstance(said, torch.Tensor) else said.pooler_output
    torch.testing.assert_close(teacher(grey, captions=False).image_BF, F.normalize(expected, dim=1))
    assert teacher.width == 12 and not teacher.knows_captions


def test_features_on_disk_teach_by_id(tmp_path: Path) -> None:
    rows = [{"image_id": 7 - n, "feature": [float(n), 3.0]} for n in range(8)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = sorted(tmp_path.iterdir())
    assert open_teacher(str(tmp_path / "t.jsonl"), CPU, writes=False).width == 2
    assert sorted(tmp_path.iterdir()) == before
    taught = open_teacher(str(tmp_path / "t.jsonl"), CPU)(batch(), captions=False)
    expected = F.normalize(torch.tensor([[7.0 - i, 3.0] for i in range(8)]), dim=1)
    torch.testing.assert_close(taught.image_BF, expected)
    writer = FeatureWriter.begin(tmp_path / "folder", np.arange(8), 2)
    writer.write(slice(0, 8), expected)
    writer.finish("x")
    torch.testing.assert_close(
        open_teacher(str(tmp_path / "folder"), CPU)(batch(), captions=False).image_BF, expected
    )


def test_what_is_no_teacher_is_told(train: Train) -> None:
    with pytest.raises(WeightsError, match="no checkpoint file, no Hugging Face folder"):
        train("--distillation", "--teacher-model-name=/nowhere")
    with pytest.raises(WeightsError, match="no folder or .jsonl of features"):
        train("--distillation", "--teacher-model-name=/nowhere.jsonl")
    with pytest.raises(ConfigError, match="distill.teacher .* is not set"):
        train("--distillation")
    with pytest.raises(ConfigError, match="pip install"):
        train("--distillation", "--teacher-model-name=damo/multi-modal_clip-vit-large-patch14_zh")


def test_a_run_learns_a_map_to_another_width_and_keeps_it_out_of_the_published_weights(
    train: Train, tmp_path: Path
) -> None:
    hf_folder(tmp_path / "hf")
    words = (
        "--distillation",
        f"--teacher-model-name={tmp_path / 'hf'}",
        "--kd_loss_weight=0.5",
        "--max-steps=6",
    )
    whole = train(*words, "--save-step-frequency=3", name="whole")
    said = next(whole.glob("out_*.log")).read_text()
    assert (
        f"Learning from {tmp_path / 'hf'} too: features of width 12, to which the student's 16 are mapped."
        in said
    )
    file = torch.load(whole / "checkpoints" / "epoch_latest.pt", weights_only=True)
    assert not any("teacher" in name for name in file["state_dict"])
    assert file["cn_clip"]["live"]["differ"]["teacher_projection.weight"].shape == (12, 16)
    again = train(*words, f"--resume={whole / 'checkpoints' / 'epoch_1_3.pt'}", name="again")
    other = torch.load(again / "checkpoints" / "epoch_latest.pt", weights_only=True)
    for name, value in file["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], value, rtol=0, atol=0)
    torch.testing.assert_close(
        other["cn_clip"]["live"]["differ"]["teacher_projection.weight"],
        file["cn_clip"]["live"]["differ"]["teacher_projection.weight"], rtol=0, atol=0,
    )  # fmt: skip


def test_similarity_needs_a_teacher_of_captions(train: Train, tmp_path: Path) -> None:
    hf_folder(tmp_path / "hf")
    with pytest.raises(ConfigError, match="says nothing of captions"):
        train("--distillation", f"--teacher-model-name={tmp_path / 'hf'}", "--set=distill.type=similarity")
