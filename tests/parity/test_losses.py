"""The losses beside the reference's own functions: its contrastive loss and what its students learn from a teacher."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.losses.distillation import feature_distances
from cn_clip.losses.pair import PairIds
from cn_clip.losses.pair.contrastive import contrastive_gradients

pytestmark = pytest.mark.parity

RunReference = Callable[..., object]

REFERENCE = """
    import os, sys, torch, torch.distributed as dist
    from argparse import Namespace
    import torch.distributed.nn
    from cn_clip.training import train

    path, out = sys.argv[1:]
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo")
    given = torch.load(path)
    args = Namespace(accum_freq=1, distillation=False, mask_ratio=0, aggregate=True, gather_with_grad=True,
                     local_device_rank=0, report_training_batch_acc=True)
    leaves = [given[name].requires_grad_() for name in ("image", "text", "scale")]
    entropy = torch.nn.CrossEntropyLoss()
    loss, accuracy = train.get_loss(lambda *inputs: leaves, None, None, entropy, entropy, args)
    loss.backward()
    distances = {}
    for name in ("narrow", "equal", "wide"):
        student = given["image"].detach().clone().requires_grad_()
        distance = train.cosineSimilarityLoss(given[name], student)
        distance.backward()
        distances[name] = (distance.detach(), student.grad)
    torch.save({"loss": loss.detach(), "gradients": [leaf.grad for leaf in leaves], "distances": distances,
                "accuracy": [accuracy["i2t"], accuracy["t2i"]]}, out)
    dist.destroy_process_group()
"""
NUM, WIDTH = 48, 32


@pytest.fixture(scope="module")
def given() -> dict[str, Tensor]:
    """Unit features, some captions twice, and a teacher's features of several widths; all in float64."""
    generator = torch.Generator().manual_seed(0)

    def rows(width: int) -> Tensor:
        return torch.randn(NUM, width, dtype=torch.float64, generator=generator)

    image = rows(WIDTH)
    text = (image + rows(WIDTH))[torch.arange(NUM) - (torch.arange(NUM) % 7 == 3).long()]
    teacher = {"narrow": rows(20), "equal": rows(WIDTH), "wide": rows(75)}
    unit = {name: F.normalize(each, dim=1) for name, each in (("image", image), ("text", text))}
    return {**unit, **teacher, "scale": torch.tensor(40.0, dtype=torch.float64)}


@pytest.fixture(scope="module")
def theirs(
    given: dict[str, Tensor], run_reference: RunReference, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("reference")
    torch.save(given, folder / "given.pt")
    run_reference(REFERENCE, folder / "given.pt", folder / "found.pt")
    found: dict[str, object] = torch.load(folder / "found.pt", weights_only=True)
    return found


@pytest.mark.parametrize("tile", [7, 64])
def test_contrastive_loss_gradients_and_accuracy(
    given: dict[str, Tensor], theirs: dict[str, object], tile: int
) -> None:
    ids = PairIds(*(torch.arange(NUM) for _ in range(5)))
    found = contrastive_gradients(
        given["image"], given["text"], given["scale"], ids, ids, lambda columns: columns[None], tile=tile
    )
    torch.testing.assert_close(found.loss, theirs["loss"], rtol=1e-13, atol=0)
    gradients = [found.image_RE, found.text_ME, found.scale]
    torch.testing.assert_close(gradients, theirs["gradients"], rtol=0, atol=1e-14)
    accuracy = [found.image_hits.float() / NUM, found.text_hits.float() / NUM]
    torch.testing.assert_close(accuracy, theirs["accuracy"])


@pytest.mark.parametrize("width", ["narrow", "equal", "wide"])
def test_feature_distances(given: dict[str, Tensor], theirs: dict[str, object], width: str) -> None:
    student = given["image"].clone().requires_grad_()
    loss = feature_distances(student, given[width], interpolate=width != "equal").mean()
    loss.backward()
    distances = theirs["distances"]
    assert isinstance(distances, dict)
    torch.testing.assert_close((loss.detach(), student.grad), distances[width], rtol=1e-12, atol=1e-15)
