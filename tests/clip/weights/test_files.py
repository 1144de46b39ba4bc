import io
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cn_clip.clip.weights.files import is_jit_archive, read_checkpoint, read_jit_weights, write_weights
from cn_clip.errors import WeightsError


@pytest.mark.parametrize(
    "number",
    [
        np.float64(5e-5),
        np.float32(0.5),
        np.float16(0.5),
        np.int64(-3),
        np.uint8(7),
        np.bool_(True),
        np.int32(1 << 20),
    ],
)
def test_numpy_numbers_become_python_s(tmp_path: Path, number: np.generic) -> None:
    torch.save({"lr": number, "weights": torch.ones(2)}, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")["lr"]
    assert type(read) in (float, int, bool)
    assert read == number.item()


def test_numpy_s_older_module_name(tmp_path: Path) -> None:
    """Files of numpy 1 name `numpy.core`."""
    torch.save({"lr": np.float64(5e-5)}, tmp_path / "new.pt")
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "old.pt", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert read_checkpoint(tmp_path / "old.pt")["lr"] == 5e-5


def test_numpy_scalars_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    torch.save({"name": np.str_("x")}, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="a.pt"):
        read_checkpoint(tmp_path / "a.pt")


class Evil:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.target,)


def test_nothing_in_a_file_runs(tmp_path: Path) -> None:
    torch.save({"state_dict": Evil(str(tmp_path / "made"))}, tmp_path / "a.pt")
    (tmp_path / "b.pt").write_bytes(pickle.dumps(Evil(str(tmp_path / "made"))))
    for name in ("a.pt", "b.pt"):
        with pytest.raises(WeightsError, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "made").exists()


def test_no_advice_to_switch_the_protection_off(tmp_path: Path) -> None:
    torch.save({"model": nn.Linear(1, 1)}, tmp_path / "a.pt")
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(tmp_path / "a.pt")
    assert "weights_only" not in str(caught.value) or "False" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file(tmp_path: Path, share: float) -> None:
    torch.save({"state_dict": {"a": torch.ones(1000)}}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WeightsError, match="a.pt"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "content",
    [b"not weights at all", b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "文字".encode(), pickle.dumps([1, 2])],
)
def test_a_foreign_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(WeightsError, match="a.pt"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_foreign_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    with pytest.raises(WeightsError, match="a.pt"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights file .*a.pt"):
        read_checkpoint(tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="is a folder: name the weights file"):
        read_checkpoint(tmp_path)
    shards = tmp_path / "epoch_latest.sharded"
    shards.mkdir()
    with pytest.raises(WeightsError, match="cn-clip consolidate .*/epoch_latest.sharded"):
        read_checkpoint(shards)


def test_a_bare_tensor(tmp_path: Path) -> None:
    torch.save(torch.ones(3), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="holds a Tensor"):
        read_checkpoint(tmp_path / "a.pt")


def test_the_format_before_torch_1_6(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(3)}}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "a.pt")["state_dict"]["a"], torch.ones(3))


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.arange(3.0)}, tmp_path / "a.safetensors")
    assert torch.equal(read_checkpoint(tmp_path / "a.safetensors")["a"], torch.arange(3.0))
    (tmp_path / "b.safetensors").write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="b.safetensors"):
        read_checkpoint(tmp_path / "b.safetensors")


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "openai.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing is deprecated, and the only way to such an archive
        torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(path)
    return path


def test_a_torchscript_archive_has_a_reader_of_its_own(archive: Path) -> None:
    assert is_jit_archive(archive)
    assert set(read_jit_weights(archive)) == {"weight", "bias"}
    with pytest.raises(WeightsError, match="TorchScript archive.*transform_openai_pretrain_weights.py"):
        read_checkpoint(archive)


def test_a_damaged_torchscript_archive(archive: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(tmp_path / "cut.pt", "w") as cut:
        for name in whole.namelist():
            if not name.endswith("data/0"):
                cut.writestr(name, whole.read(name))
    with pytest.raises(WeightsError, match="cut.pt"):
        read_jit_weights(tmp_path / "cut.pt")


def test_weights_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.pt"
    write_weights({"a": torch.ones(2)}, path)
    assert torch.equal(read_checkpoint(path)["a"], torch.ones(2))
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    class Unsaveable(io.BytesIO):
        def __reduce_ex__(self, protocol: object) -> str:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        write_weights({"a": torch.zeros(2), "b": Unsaveable()}, path)  # type: ignore[dict-item]  # fails half-way
    assert torch.equal(read_checkpoint(path)["a"], torch.ones(2))
    assert [p.name for p in path.parent.iterdir()] == ["a.pt"]


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask
