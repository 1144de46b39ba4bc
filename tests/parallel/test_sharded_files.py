"""Folders of shards by one process; those of several ranks are in tests/exactness."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from cn_clip.config.schema import Parallel
from cn_clip.errors import ConfigError, WeightsError
from cn_clip.parallel import sharded_files
from cn_clip.parallel.engines import Engine, ddp
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.sharded_index import INDEX

CPU = torch.device("cpu")


@pytest.fixture
def engine() -> Engine[nn.Linear]:
    """After one step."""
    torch.manual_seed(0)
    engine = ddp.build(nn.Linear(3, 2), Parallel(), Precision("fp32", CPU), Ranks(0, 1, 0, CPU))
    engine.set_optimizer(torch.optim.AdamW(engine.module.parameters(), lr=0.1))
    engine.backward(engine(torch.ones(1, 3)).sum())
    engine.step(None)
    return engine


def test_what_was_saved_comes_back(engine: Engine[nn.Linear], tmp_path: Path) -> None:
    sharded_files.save(
        tmp_path / "a", engine, {"epoch": 2}, more={"average.weight": torch.arange(6.0).view(2, 3)}
    )
    found = sharded_files.consolidate(tmp_path / "a")
    assert found["facts"] == sharded_files.read_facts(tmp_path / "a") == {"epoch": 2}
    assert torch.equal(found["model"]["weight"], engine.module.weight)
    assert found["more"].keys() == {"average.weight"}
    state = found["optimizer"]
    assert state["param_groups"][0]["param_names"] == ["weight", "bias"]
    assert state["param_groups"][0]["lr"] == 0.1
    own = engine.optimizer.state_dict()["state"]
    assert torch.equal(state["state"][1]["exp_avg_sq"], own[1]["exp_avg_sq"])
    assert float(state["state"][1]["step"]) == 1
    state["param_groups"][0].pop("param_names")
    engine.load_optimizer_state(state)


def test_in_the_background_the_weights_of_then_are_saved(engine: Engine[nn.Linear], tmp_path: Path) -> None:
    then = engine.module.weight.detach().clone()
    pending = sharded_files.save(tmp_path / "a", engine, {}, asynchronous=True)
    with torch.no_grad():
        engine.module.weight.zero_()
    pending.wait()
    assert pending.is_done()
    assert torch.equal(sharded_files.read_weights(tmp_path / "a")["weight"], then)


def test_a_folder_is_replaced_and_nothing_is_left_beside_it(
    engine: Engine[nn.Linear], tmp_path: Path
) -> None:
    (tmp_path / ".a.partial").mkdir()
    (tmp_path / ".a.partial" / "of a killed run").touch()
    for epoch in (1, 2):
        sharded_files.save(tmp_path / "a", engine, {"epoch": epoch})
    assert sharded_files.read_facts(tmp_path / "a") == {"epoch": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [".metadata", "__0_0.distcp", INDEX]


def test_cut_off_between_two_renamings_the_old_one_is_found(
    engine: Engine[nn.Linear], tmp_path: Path
) -> None:
    sharded_files.save(tmp_path / "a", engine, {"epoch": 1})
    (tmp_path / "a").rename(tmp_path / ".a.old")
    assert sharded_files.read_facts(tmp_path / "a") == {"epoch": 1}
    assert sharded_files.consolidate(tmp_path / "a")["facts"] == {"epoch": 1}
    sharded_files.save(tmp_path / "a", engine, {"epoch": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self._trace),)


def test_one_process_writes_and_reads_a_folder_without_warnings_of_torch(
    engine: Engine[nn.Linear], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    sharded_files.save(tmp_path / "a", engine, {})
    sharded_files.save(tmp_path / "b", engine, {}, asynchronous=True).wait()
    sharded_files.consolidate(tmp_path / "b")
    assert [str(warning.message) for warning in recwarn] == []


def test_the_pickle_in_the_folder_is_never_read(engine: Engine[nn.Linear], tmp_path: Path) -> None:
    sharded_files.save(tmp_path / "a", engine, {})
    (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(Malicious(tmp_path / "trace")))
    sharded_files.consolidate(tmp_path / "a")
    assert not (tmp_path / "trace").exists()


def test_shards_that_would_run_code_are_refused(engine: Engine[nn.Linear], tmp_path: Path) -> None:
    sharded_files.save(tmp_path / "a", engine, {})
    data, index_path = tmp_path / "a" / "__0_0.distcp", tmp_path / "a" / INDEX
    torch.save(Malicious(tmp_path / "trace"), data)
    index = json.loads(index_path.read_text())
    for found in index["tensors"].values():
        found["parts"][0] |= {"start": 0, "length": data.stat().st_size}
    index_path.write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="cannot be read .Weights only load failed"):
        sharded_files.consolidate(tmp_path / "a")
    assert not (tmp_path / "trace").exists()


def test_a_shard_that_is_cut(engine: Engine[nn.Linear], tmp_path: Path) -> None:
    sharded_files.save(tmp_path / "a", engine, {})
    os.truncate(tmp_path / "a" / "__0_0.distcp", 1)
    with pytest.raises(WeightsError, match=r"cannot be read \(\w.*\): a file of it is missing or damaged"):
        sharded_files.consolidate(tmp_path / "a")


def test_no_file_outside_the_folder_is_opened(engine: Engine[nn.Linear], tmp_path: Path) -> None:
    sharded_files.save(tmp_path / "a", engine, {})
    sharded_files.save(tmp_path / "b", engine, {})
    (tmp_path / "b" / "__0_0.distcp").rename(tmp_path / "outside")
    index_path = tmp_path / "b" / INDEX
    index_path.write_text(index_path.read_text().replace("__0_0.distcp", "../outside"))
    with pytest.raises(WeightsError, match="cannot be read .*No such file"):
        sharded_files.consolidate(tmp_path / "b")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_stops_the_writing_is_raised(
    engine: Engine[nn.Linear], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    monkeypatch.setattr(Path, "rename", _full)
    with pytest.raises(OSError, match="No space left"):
        sharded_files.save(tmp_path / "a", engine, {}, asynchronous=asynchronous).wait()


def _full(path: Path, target: Path) -> Path:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize(("content", "says"), [(None, "is no sharded checkpoint"), ("{", "is no sharded"),
                                               ('{"format": 9}', "is of format 9")])  # fmt: skip
def test_what_is_no_sharded_checkpoint(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / INDEX).write_text(content)
    with pytest.raises(WeightsError, match=says):
        sharded_files.read_facts(tmp_path)


def test_a_model_of_other_shapes_is_told(engine: Engine[nn.Linear], tmp_path: Path) -> None:
    sharded_files.save(tmp_path / "a", engine, {})
    with pytest.raises(WeightsError, match=r"has model\.weight \[2, 3\], this run wants \[5, 5\]"):
        sharded_files.read_into(tmp_path / "a", {"model.weight": torch.zeros(5, 5)})


def test_an_engine_with_parts_of_its_own_is_refused(engine: Engine[nn.Linear], tmp_path: Path) -> None:
    engine.saves_shards = False
    engine.settings = Parallel(engine="zero2")
    with pytest.raises(ConfigError, match=r"checkpoint\.sharded.*zero2 are DeepSpeed's own"):
        sharded_files.save(tmp_path / "a", engine, {})
    assert not (tmp_path / "a").exists()
