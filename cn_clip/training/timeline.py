"""The stages of a run one after the other: which pairs each sees, and from which step to which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cn_clip.data.sampler import EpochOrder
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.plan import Plan
from cn_clip.training.stages import Stage
from cn_clip.training.training_data import Sources, open_sources, order_of


@dataclass(frozen=True)
class Leg:
    """A stage with its opened sets of pairs, their order, and its steps."""

    stage: Stage
    sources: Sources
    order: EpochOrder
    plan: Plan
    """From its first step on."""

    @property
    def num_steps(self) -> int:
        return self.plan.last_step - self.plan.begin

    def starting_at(self, step: int) -> Leg:
        """The same with so many steps of the run done, at most its own."""
        first_step = min(max(step, self.plan.begin), self.plan.last_step)
        return replace(self, plan=replace(self.plan, first_step=first_step))

    def facts(self) -> dict[str, int | str]:
        """What a checkpoint keeps of it, so that a position can be told in stages of other lengths."""
        plan = self.plan
        return {
            "name": self.stage.name,
            "begin": plan.begin,
            "last_step": plan.last_step,
            "epochs_before": plan.epochs_before,
            "steps_per_epoch": plan.steps_per_epoch,
        }


def timeline_of(stages: Sequence[Stage], ranks: Ranks) -> list[Leg]:
    """The legs of a run; a wrong path should not wait for a model. Sets that two stages share are opened once."""
    opened: list[tuple[Stage, Sources]] = []
    for stage in stages:
        shared = [sources for other, sources in opened if _same_sets(stage, other)]
        opened.append((stage, shared[0] if shared else open_sources(stage.config.data, ranks)))
    legs: list[Leg] = []
    begin = epochs_before = 0
    for stage, sources in opened:
        order = order_of(stage.config, sources.train, ranks, epochs_before=epochs_before)
        train = stage.config.train
        end = begin + (train.max_steps or order.steps_per_epoch * train.max_epochs)
        plan = Plan(order.steps_per_epoch, begin, end, begin, end, epochs_before)
        legs.append(Leg(stage, sources, order, plan))
        begin, epochs_before = end, plan.max_epochs
    return [replace(leg, plan=replace(leg.plan, max_steps=begin)) for leg in legs]


def _same_sets(one: Stage, other: Stage) -> bool:
    a, b = one.config.data, other.config.data
    return (a.train, a.valid, a.valid_sets) == (b.train, b.valid, b.valid_sets)
