import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

DOOR = "cn_clip/preprocess/transform_openai_pretrain_weights.py"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and the only way to such an archive
        torch.jit.trace(nn.Linear(2, 3).half().float(), torch.ones(1, 2)).save(tmp_path / "RN50.pt")
    return tmp_path / "RN50.pt"


def test_the_default_name_and_one_that_is_given(run_ours: Run, archive: Path, tmp_path: Path) -> None:
    done = run_ours(DOOR, "--raw-ckpt-path", archive)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Wrote the weights of {archive} to {tmp_path / 'RN50.state_dict.pt'}\n"
    assert done.stderr == ""
    weights = torch.load(tmp_path / "RN50.state_dict.pt", weights_only=True)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {"weight": (3, 2), "bias": (3,)}
    assert (
        run_ours(DOOR, "--raw-ckpt-path", archive, "--new-ckpt-path", tmp_path / "new/x.pt").returncode == 0
    )
    assert (tmp_path / "new/x.pt").is_file()


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "there is no weights file"), (b"x", "is no TorchScript archive")]
)
def test_what_is_no_archive(run_ours: Run, tmp_path: Path, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "a.pt").write_bytes(content)
    done = run_ours(DOOR, "--raw-ckpt-path", tmp_path / "a.pt")
    assert done.returncode == 2
    assert reason in done.stderr and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == (["a.pt"] if content else [])
