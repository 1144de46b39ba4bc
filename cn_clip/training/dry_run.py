"""Everything a run needs, looked at before it starts; nothing is started and nothing is left behind.

What is wrong is the error that the run itself would end in, only earlier. What is right is a line of the plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cn_clip.config.load import to_plain
from cn_clip.config.schema import TrainConfig
from cn_clip.data.loader import explained_worker_death
from cn_clip.data.pairs import PairStream
from cn_clip.errors import DeviceError
from cn_clip.parallel.ranks import Ranks, start_ranks
from cn_clip.training.build import build_config
from cn_clip.training.checkpoints import SavedRun, read_saved
from cn_clip.training.checkpoints.best import check_best
from cn_clip.training.diagnosis.fake_model import meta_model
from cn_clip.training.diagnosis.finding import Finding
from cn_clip.training.diagnosis.machine import available_bytes
from cn_clip.training.diagnosis.memory import Prediction, check_memory, predict
from cn_clip.training.diagnosis.model_settings import check_towers
from cn_clip.training.diagnosis.output_folder import check_disk, check_writable, disk_need
from cn_clip.training.diagnosis.packages import check_packages
from cn_clip.training.diagnosis.quiet import warnings_only
from cn_clip.training.diagnosis.weights_fit import check_training_state, check_weights
from cn_clip.training.distillation import open_distillation
from cn_clip.training.freezing import freeze_towers
from cn_clip.training.going_on import checkpoint_to_go_on_from, steps_behind
from cn_clip.training.mask_schedule import MaskSchedule
from cn_clip.training.missing_negatives import missing_negatives
from cn_clip.training.run_dir import RunDir
from cn_clip.training.schedule import Schedule
from cn_clip.training.stages import stages_of
from cn_clip.training.timeline import Leg, timeline_of
from cn_clip.training.training_data import TrainingData
from cn_clip.training.unused_settings import unused_settings


@dataclass(frozen=True)
class Line:
    """One line of the plan."""

    subject: str
    says: str

    def __str__(self) -> str:
        return f"{self.subject:<10} {self.says}"


def check(config: TrainConfig) -> list[Line]:
    """The plan of the run, on the main rank; the error that would end it, on every rank that meets it."""
    with start_ranks(config.run.device) as ranks, warnings_only():
        lines = list(_DryRun(config, ranks).lines())
        return lines if ranks.is_main else []


class _DryRun:
    def __init__(self, config: TrainConfig, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks
        self._run_dir = RunDir(config.run.logs_dir, config.run.name, writes=False)

    def lines(self) -> Iterator[Line]:
        """In the order of what costs little to look at."""
        config, ranks = self._config, self._ranks
        check_best(config)
        stages = stages_of(config, build_config)
        packages = dict.fromkeys(name for stage in stages for name in check_packages(stage.config, ranks))
        yield Line("settings", self._settings(len(stages)))
        for sentence in unused_settings([stage.config for stage in stages]):
            yield Line("no effect", sentence)
        if packages:
            yield Line("packages", ", ".join(packages))
        folder = check_writable(self._run_dir)
        yield Line("folder", f"{self._run_dir.path} can be written")
        legs = timeline_of(stages, ranks)
        for sentence in missing_negatives(legs):
            yield Line("no effect", sentence)
        path = checkpoint_to_go_on_from(config, self._run_dir)
        saved = None if path is None else read_saved(path)
        origin = {"settings": to_plain(config), "world_size": ranks.world_size}
        done = steps_behind(config, saved, legs, origin)
        yield from self._weights(legs, saved)
        if saved is not None:
            yield Line(
                "resume",
                f"{saved.path}: epoch {saved.position.epoch}, step {saved.position.step}; {done} steps are done",
            )
        # before the first batch: one that is too large for the memory takes long to read, too
        yield from self._memory(legs)
        yield from self._data(legs, done)
        yield from self._plans(legs)
        need = disk_need(config, self._predictions[0], legs, done)
        yield Line("disk", check_disk(need, folder))
        total = legs[-1].plan.last_step
        left = "nothing is left to do" if done >= total else f"{total - done} of {total} steps are to be done"
        yield Line("result", f"All is there: {left}. Start it with the same command without --dry-run.")

    def _settings(self, num_stages: int) -> str:
        config, ranks = self._config, self._ranks
        alone = (
            "one process"
            if ranks.world_size == 1
            else f"{ranks.world_size} ranks under {config.parallel.engine}"
        )
        staged = f", {num_stages} stages" if config.stages else ""
        return f"{config.model.image} and {config.model.text} on {ranks.device.type}, {alone}, {config.train.precision}{staged}"

    def _weights(self, legs: Sequence[Leg], saved: SavedRun | None) -> Iterator[Line]:
        """Files that the first stage starts from; later ones start from its checkpoint."""
        self._masks: list[bool] = []
        for number, leg in enumerate(legs):
            config = leg.stage.config
            model = meta_model(config.model, config.loss)
            if number == 0:
                read = check_weights(model, config, saved)
                if saved is not None and not config.run.reset_optimizer and not _has_adapters(config):
                    freeze_towers(model, config.model)
                    check_training_state(model, config, saved)
                yield Line("weights", ", ".join(map(str, read)) if read else "fresh, from the seed")
            check_towers(model, config, self._ranks)
            open_distillation(config, model, self._ranks, writes=False)
            self._masks.append(model.visual.masks_patches)

    def _data(self, legs: Sequence[Leg], done: int) -> Iterator[Line]:
        """The first batch of each stage and of each validation set, read in this process."""
        seen: list[object] = []
        for leg in legs:
            sources, config = leg.sources, _without_workers(leg.stage.config)
            if any(sources is other for other in seen):
                continue
            seen.append(sources)
            pad_id = meta_model(config.model).bert.pad_id
            data = TrainingData(config, sources, leg.order, self._ranks, pad_id=pad_id)
            first = min(max(done - leg.plan.begin, 0), leg.num_steps - 1)
            with explained_worker_death():
                batch = next(iter(data.train_loader(first_step=first, last_step=leg.num_steps)))
                for loader in data.valid.values():
                    next(iter(loader))
            train = sources.train
            num_pairs = train.num_pairs if isinstance(train, PairStream) else len(train)
            sets = "".join(
                f", {name or 'validation'} {len(source)}" for name, source in sources.valid.items()
            )
            yield Line(
                "data",
                f"{num_pairs} pairs of {train.num_images} pictures{sets}; the first batch was read: {len(batch)} pairs, captions of "
                f"up to {batch.tokens_BL.shape[1]} tokens",
            )

    def _plans(self, legs: Sequence[Leg]) -> Iterator[Line]:
        for leg in legs:
            yield Line(f"stage {leg.stage.number + 1}" if len(legs) > 1 else "plan", self._plan(leg))

    def _plan(self, leg: Leg) -> str:
        config, plan = leg.stage.config, leg.plan
        batch = config.train.batch_size * config.train.accumulate * self._ranks.world_size
        whole = config.optim.horizon == "run"
        schedule = Schedule(config.optim, plan.max_steps if whole else leg.num_steps)
        begin = plan.begin if whole else 0
        first, last = schedule.lr(begin + 1), schedule.lr(begin + leg.num_steps)
        named = f"{leg.stage.name}: " if leg.stage.name else ""
        epochs = math.ceil(leg.num_steps / plan.steps_per_epoch)
        return (
            f"{named}steps {plan.begin + 1} to {plan.last_step}, {epochs} epochs of {plan.steps_per_epoch} steps; batches of {batch} "
            f"pairs ({config.train.batch_size} x {config.train.accumulate} micro-batches x {self._ranks.world_size} ranks); "
            f"{config.optim.type}, learning rate {first:.3g} at the first step, at most {config.optim.lr:.3g} after "
            f"{config.optim.warmup_steps}, {last:.3g} at the last{self._more(leg)}"
        )

    def _more(self, leg: Leg) -> str:
        model = leg.stage.config.model
        frozen = [
            kind
            for kind, is_frozen in (("image", model.freeze_image), ("text", model.freeze_text))
            if is_frozen
        ]
        more = [f"{kind} tower frozen" for kind in frozen]
        if model.mask_ratio and not self._masks[leg.stage.number]:
            more.append(f"model.mask_ratio does nothing: {model.image} leaves out no patches")
        elif model.mask_ratio:
            masks = MaskSchedule(model, leg.num_steps)
            more.append(f"{model.mask_ratio:.0%} of the patches masked for {masks.masked_steps} steps")
        if leg.stage.config.optim.warmup_steps >= leg.num_steps:
            more.append("the learning rate never reaches its peak: lower optim.warmup_steps (--warmup)")
        return "".join(f"; {part}" for part in more)

    def _memory(self, legs: Sequence[Leg]) -> Iterator[Line]:
        available = available_bytes(self._ranks)
        self._predictions: list[Prediction] = []
        for leg in legs:
            config = leg.stage.config
            prediction = predict(config, self._ranks.world_size, self._ranks.device.type)
            self._predictions.append(prediction)
            found = check_memory(config, prediction, available, ranks=self._ranks)
            if found.verdict == "wrong" and config.train.on_out_of_memory == "stop":
                raise DeviceError(
                    f"{found.says}, too little, and train.on_out_of_memory is stop: {found.next_step}"
                )
            yield Line("memory", _with_advice(found, config))


def _with_advice(found: Finding, config: TrainConfig) -> str:
    if found.verdict == "ok":
        return found.says
    halves = "; it will be halved until it fits" if found.verdict == "wrong" else ""
    return f"{found.says}{halves}. Better: {found.next_step}"


def _has_adapters(config: TrainConfig) -> bool:
    return config.lora.image_rank > 0 or config.lora.text_rank > 0


def _without_workers(config: TrainConfig) -> TrainConfig:
    """Reading in this process tells an error as it is, and starts nothing."""
    return replace(config, data=replace(config.data, num_workers=0, valid_num_workers=0))
