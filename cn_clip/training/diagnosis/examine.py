"""All checks of the doctor, one after the other, in the order in which a run would meet what they look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from cn_clip.clip.presets import text_preset
from cn_clip.config.load import merge
from cn_clip.config.schema import Settings, TrainConfig
from cn_clip.errors import ConfigError
from cn_clip.parallel.gather import from_main
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.build import build_config
from cn_clip.training.diagnosis.bandwidth import Bandwidth, check_bandwidth, measure_bandwidth
from cn_clip.training.diagnosis.bound import Rates, check_bound
from cn_clip.training.diagnosis.exact_step import check_exact_step
from cn_clip.training.diagnosis.finding import Finding
from cn_clip.training.diagnosis.kernels import check_kernels
from cn_clip.training.diagnosis.loader_rate import LoaderRate, check_loader, measure_loader
from cn_clip.training.diagnosis.machine import (
    available_bytes,
    check_machine,
    check_same_versions,
    cores,
    local_ranks,
)
from cn_clip.training.diagnosis.memory import Prediction, check_memory, predict
from cn_clip.training.diagnosis.quiet import warnings_only
from cn_clip.training.diagnosis.step_rate import StepRate, check_step, measure_steps
from cn_clip.training.stages import Stage, stages_of
from cn_clip.training.timeline import timeline_of


def config_of(settings: Settings) -> TrainConfig:
    """Checked settings; unlike a run, a doctor does without training pairs."""
    data = settings.get("data")
    if isinstance(data, dict) and data.get("train") is not None:
        return build_config(settings)
    config = build_config(merge(settings, [("data.train", {"type": "lmdb_pairs", "path": "none"})]))
    return replace(config, data=replace(config.data, train=None))


@dataclass
class Examination:
    """One call of the doctor; every rank takes part in every check."""

    config: TrainConfig
    ranks: Ranks
    seconds: float = 60.0
    """What the timed steps may take."""
    _loader: LoaderRate | None = None
    _network: Bandwidth | None = None
    _step: StepRate | None = None
    _predictions: dict[int, Prediction] = field(default_factory=dict)
    """By the number of the stage."""

    def run(self, only: Sequence[str] = ()) -> Iterator[Finding]:
        """Findings, each when it is there; `only` some checks, by name."""
        unknown = sorted(set(only) - set(CHECKS))
        if unknown:
            raise ConfigError(f"there is no check {unknown[0]!r}; choose from {', '.join(CHECKS)}")
        for name, check in CHECKS.items():
            if not only or name in only:
                with warnings_only():
                    found = check(self)
                yield from found

    @cached_property
    def stages(self) -> list[Stage]:
        if self.config.data.train is None:
            return [Stage(0, "", self.config)]
        return stages_of(self.config, build_config)

    @cached_property
    def available(self) -> float:
        """Bytes that a rank may take, the least of all ranks."""
        return available_bytes(self.ranks)

    @property
    def fullest(self) -> Prediction:
        """Of the stage that takes the most."""
        return max(map(self._predicted, self.stages), key=lambda prediction: prediction.total)

    def _predicted(self, stage: Stage) -> Prediction:
        if stage.number not in self._predictions:
            device_type = self.ranks.device.type
            self._predictions[stage.number] = predict(stage.config, self.ranks.world_size, device_type)
        return self._predictions[stage.number]

    def machine(self) -> list[Finding]:
        return [*check_machine(self.ranks), *check_same_versions(self.ranks)]

    def kernels(self) -> list[Finding]:
        return check_kernels(self.stages[0].config, self.ranks)

    def exactness(self) -> list[Finding]:
        return [check_exact_step(self.config, self.ranks)]

    def network(self) -> list[Finding]:
        if self.ranks.world_size > 1:
            self._network = measure_bandwidth(self.ranks)
        return [check_bandwidth(self._network, self.ranks.device.type)]

    def memory(self) -> list[Finding]:
        found = []
        for stage in self.stages:
            prediction = self._predicted(stage)
            finding = check_memory(stage.config, prediction, self.available, ranks=self.ranks)
            found.append(
                replace(finding, says=f"stage {stage.name!r}: {finding.says}") if stage.name else finding
            )
        return found

    def loader(self) -> list[Finding]:
        if self.config.data.train is None:
            return [check_loader(None, self.config)]
        leg = timeline_of(self.stages, self.ranks)[0]
        pad_id = text_preset(leg.stage.config.model.text).pad_id
        self._loader = measure_loader(leg.stage.config, leg, self.ranks, pad_id)
        return [check_loader(self._loader, leg.stage.config)]

    def step(self) -> list[Finding]:
        config = self.stages[0].config
        self._step = measure_steps(
            config,
            self._predicted(self.stages[0]),
            self.ranks,
            available=self.available,
            longest_seconds=self.seconds,
            batch=self._loader.batch if self._loader else None,
        )
        return [check_step(self._step)]

    def bound(self) -> list[Finding]:
        if self._step is None:
            return []
        rates = Rates(
            step=self._step.pairs_per_second,
            loader=self._loader.pairs_per_second if self._loader else None,
            network_seconds=self._exchange_seconds(),
            step_seconds=self._step.seconds,
            memory_bytes=self.fullest.total,
            available_bytes=self.available,
            num_workers=self.config.data.num_workers,
            cores_a_rank=cores() / local_ranks(),
            wastes=self._step.wastes,
        )
        return [check_bound(rates)]

    def _exchange_seconds(self) -> float | None:
        """Gradients once, features there and their gradients back, at the rates that were measured."""
        if self._network is None:
            return None
        loss, weights = self.fullest.loss, self.fullest.cost.weights
        gradients = (weights.trained_bytes + loss.returned_bytes) / self._network.reduce_bytes_per_second
        return gradients + loss.gathered_bytes / self._network.gather_bytes_per_second


CHECKS: dict[str, Callable[[Examination], list[Finding]]] = {
    "machine": Examination.machine,
    "kernels": Examination.kernels,
    "exactness": Examination.exactness,
    "network": Examination.network,
    "memory": Examination.memory,
    "loader": Examination.loader,
    "step": Examination.step,
    "bound": Examination.bound,
}
"""In the order they are made; later ones use what earlier ones measured."""


def any_wrong(findings: Sequence[Finding], ranks: Ranks) -> bool:
    """Whether the main rank found something wrong, on every rank."""
    return from_main(any(finding.verdict == "wrong" for finding in findings), ranks)
