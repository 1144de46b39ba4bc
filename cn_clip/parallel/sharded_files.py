"""Sharded checkpoints: a folder to which each rank writes the parts it holds (torch's distributed checkpoint, DCP).

    __0_0.distcp, __1_0.distcp …   tensors, as torch saves them
    index.json                     where each part of each tensor is, and the run's facts
    .metadata                      DCP's own index, for torch's tools; a pickle, so it is never read here

The folder is written beside its place and renamed when every rank is done. Any number of ranks reads it, under DDP or
FSDP; `consolidate` makes whole tensors of it without any. Names: `model.<name>`, `optimizer.<parameter>.<key>`, and what
the caller adds (for example `average.<name>`).
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from cn_clip.errors import ConfigError, WeightsError
from cn_clip.parallel.engines import Engine
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.sharded_index import IndexedReader, IndexedWriter, beside, dtype_of, read_index
from cn_clip.parallel.shards import is_sharded

Facts = Mapping[str, Any]
"""Plain data; `Any`: numbers, texts, lists and objects of JSON."""
State = dict[str, Any]
"""Layout of `Optimizer.state_dict()`; `Any` as in torch."""


class Pending:
    """A folder that is being written."""

    def __init__(self, future: Future[Any] | None) -> None:  # Any: DCP's own metadata
        self._future = future

    def is_done(self) -> bool:
        return self._future is None or self._future.done()

    def wait(self) -> None:
        """Return when the folder is in its place; raise what went wrong."""
        if self._future is not None:
            with _first_failure():
                self._future.result()


def check_engine(engine: Engine[Any]) -> None:  # Any: whatever model it trains
    """ConfigError for an engine whose parts cannot be written one by one."""
    if not engine.saves_shards:
        raise ConfigError(
            f"checkpoint.sharded=true needs parallel.engine=ddp or fsdp: the parts of {engine.settings.engine} are "
            "DeepSpeed's own, so its checkpoints are whole files; set checkpoint.sharded=false"
        )


def save(
    folder: Path,
    engine: Engine[Any],  # Any: whatever model it trains
    facts: Facts,
    *,
    more: Mapping[str, Tensor] | None = None,
    asynchronous: bool = False,
) -> Pending:
    """Write weights, optimizer state, `more` tensors and facts; in the background, what changes is copied first. Collective."""
    check_engine(engine)
    own = engine.optimizer.state_dict()
    tensors, numbers = _parts(engine, own)
    tensors |= {} if more is None else dict(more)
    groups = [
        {key: value for key, value in group.items() if key != "params"} for group in own["param_groups"]
    ]
    content = {
        "facts": dict(facts),
        "names": engine.parameter_names,
        "groups": [{**g, "size": len(o["params"])} for g, o in zip(groups, own["param_groups"], strict=True)],
        "numbers": numbers,
    }
    _make_room(folder, engine.ranks)
    writer, group = IndexedWriter(folder, content), _cpu_group(engine)
    _say_nothing_of_one_process()
    if not asynchronous:
        with _first_failure():
            dcp.save(tensors, storage_writer=writer, process_group=group)
        return Pending(None)
    future = dcp.async_save(tensors, storage_writer=writer, process_group=group)
    assert isinstance(future, Future)  # the writer does the copying, which DCP then waits for
    return Pending(future)


def _parts(engine: Engine[Any], own: State) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """This rank's tensors by their names in the folder, and the optimizer's plain numbers by parameter."""
    tensors = {f"model.{name}": value for name, value in engine.module.state_dict().items()}
    numbers: dict[str, dict[str, Any]] = {}
    for number, entry in own["state"].items():
        name = engine.parameter_names[number]
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}.{key}"] = value
            else:
                numbers.setdefault(name, {})[key] = value
    return tensors, numbers


def read_facts(folder: Path) -> dict[str, Any]:  # Any: plain data
    """What `save` was told of the run; no tensor is read."""
    return dict(read_index(folder)["facts"])


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The model's whole tensors by name, on every rank. Collective."""
    index = read_index(folder)
    tensors = {
        name: _room(found, None) for name, found in index["tensors"].items() if name.startswith("model.")
    }
    read_into(folder, tensors)
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items()}


def read_optimizer(folder: Path, engine: Engine[Any]) -> State:  # Any: whatever model it trains
    """State in torch's layout, each tensor cut up as the engine has its parameter; groups have `param_names`. Collective.

    Numbered as the run that wrote it numbered them: map it by name before `engine.load_optimizer_state` takes it.
    """
    index = read_index(folder)
    likes = dict(engine.module.named_parameters())
    tensors = {}
    for key, found in index["tensors"].items():
        if key.startswith("optimizer."):
            tensors[key] = _room(found, likes.get(key.removeprefix("optimizer.").rpartition(".")[0]))
    read_into(folder, tensors)
    return _state(index, tensors)


def read_into(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or cut up, by their names in the folder. Collective."""
    index = read_index(folder)
    for name, tensor in tensors.items():
        size = index["tensors"].get(name, {}).get("size")
        if size != list(tensor.shape):
            raise WeightsError(
                f"{folder} has {name} {'not at all' if size is None else size}, this run wants {list(tensor.shape)}: "
                "train with the settings of the run that wrote it"
            )
    if not tensors:
        return
    _say_nothing_of_one_process()
    try:
        dcp.load(dict(tensors), storage_reader=IndexedReader(folder, index))
    except CheckpointException as error:
        failure = _failure(error)
        reason = (str(failure) or type(failure).__name__).splitlines()[0]
        raise WeightsError(
            f"the sharded checkpoint {folder} cannot be read ({reason}): a file of it is missing or damaged; go on from "
            "an older one"
        ) from error


def consolidate(folder: Path) -> dict[str, Any]:  # Any: see the docstring
    """Whole tensors, in one process without ranks: `model`, `optimizer` in torch's layout, `more` and `facts`."""
    index = read_index(folder)
    tensors = {name: _room(found, None) for name, found in index["tensors"].items()}
    read_into(folder, tensors)
    weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    more = {n: t for n, t in tensors.items() if not n.startswith(("model.", "optimizer."))}
    return {
        "model": weights,
        "optimizer": _state(index, tensors),
        "more": more,
        "facts": dict(index["facts"]),
    }


@contextmanager
def _first_failure() -> Iterator[None]:
    """What went wrong on the first rank that failed, in the place of DCP's own exception, which `except` cannot catch."""
    try:
        yield
    except CheckpointException as error:
        raise _failure(error) from error


def _failure(error: CheckpointException) -> BaseException:
    return next(failure for failure, _ in error.failures.values())


def _room(found: Mapping[str, Any], like: Tensor | None) -> Tensor:
    """Empty tensor of an entry of the index, cut up as `like` is where it has its shape."""
    if like is not None and is_sharded(like) and list(like.shape) == found["size"]:
        return torch.zeros_like(like.detach(), dtype=dtype_of(found["dtype"]))
    return torch.zeros(found["size"], dtype=dtype_of(found["dtype"]))


def _state(index: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> State:
    names: list[str] = index["names"]
    number_of = {name: number for number, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for name, plain in index["numbers"].items():
        state.setdefault(number_of[name], {}).update(plain)
    for full, tensor in tensors.items():
        if full.startswith("optimizer."):
            name, _, key = full.removeprefix("optimizer.").rpartition(".")
            state.setdefault(number_of[name], {})[key] = tensor
    groups, start = [], 0
    for group in index["groups"]:
        # JSON knows no tuples; pairs of numbers such as `betas` are ones in torch
        settings = {
            key: tuple(value) if isinstance(value, list) and key != "param_names" else value
            for key, value in group.items()
            if key != "size"
        }
        numbers = list(range(start, start + group["size"]))
        start += len(numbers)
        groups.append({**settings, "params": numbers, "param_names": [names[number] for number in numbers]})
    return {"state": state, "param_groups": groups}


def _say_nothing_of_one_process() -> None:
    """One process without ranks is meant here. For the whole program, since DCP may warn from its own thread."""
    warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninit", UserWarning)


def _make_room(folder: Path, ranks: Ranks) -> None:
    """Throw away what a run that was killed has left half-written."""
    if ranks.is_main:
        shutil.rmtree(beside(folder, "partial"), ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
    if ranks.world_size > 1:
        dist.barrier()


_GROUPS: WeakKeyDictionary[Engine[Any], Any] = WeakKeyDictionary()
"""The group in which an engine's ranks agree on files; `Any`: whatever model, and torch has groups untyped."""


def _cpu_group(engine: Engine[Any]) -> Any:  # Any: as above
    """A group of its own, on the CPU: a save in the background must not come between the messages of a step."""
    if engine.ranks.world_size == 1:
        return None
    if engine not in _GROUPS:
        _GROUPS[engine] = dist.new_group(
            backend="gloo", timeout=timedelta(minutes=engine.settings.timeout_minutes)
        )
    return _GROUPS[engine]
