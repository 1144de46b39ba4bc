"""The reference's training flags as one table: flag -> setting, and back for its `params_*.txt`.

Only flags that were typed become overrides, so a default stands once, in `schema`. Beside the reference's 46 flags there
are `--config FILE`, `--set NAME=VALUE` and `--dry-run`.
"""

from __future__ import annotations

import argparse
import difflib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from cn_clip.config.load import parse_override
from cn_clip.config.schema import Part, TrainConfig
from cn_clip.errors import ConfigError

log = logging.getLogger(__name__)

Override = tuple[str, Any]
"""Setting path and its value; `Any` since values are plain YAML data."""


def _same(value: Any) -> Any:
    return value


def _text_or_null(value: str) -> str | None:
    return None if value.strip().lower() in ("", "none") else value


def _interval(value: int) -> int | None:
    return value if value > 0 else None


def _pairs(path: str) -> dict[str, str]:
    return {"type": "lmdb_pairs", "path": path}


def _pairs_or_null(path: str) -> dict[str, str] | None:
    return None if _text_or_null(path) is None else _pairs(path)


def _path_of(part: Part | None) -> str | None:
    """Folder of a pairs part; other kinds of sets have none and print as their type."""
    return None if part is None else getattr(part.options, "path", part.type)


def _resume(value: str) -> str:
    return _text_or_null(value) or "none"


@dataclass(frozen=True)
class Flag:
    """One flag of the reference and the setting it stands for."""

    name: str
    kind: type
    """Type of its value; `bool` is a flag without one."""
    setting: str | None
    """Dotted setting; None is accepted and changes nothing."""
    read: Callable[[Any], Any] = _same
    """Typed value -> plain setting."""
    write: Callable[[Any], Any] = _same
    """Setting -> the value the reference would have had."""
    note: str = ""
    """What `--help` adds to the setting's own meaning."""

    @property
    def dest(self) -> str:
        return self.name.removeprefix("--").replace("-", "_")


FLAGS = (
    Flag("--train-data", str, "data.train", _pairs_or_null, _path_of, "LMDB folder with pairs/ and imgs/"),
    Flag("--val-data", str, "data.valid", _pairs_or_null, _path_of, "LMDB folder; '' or None: no validation"),
    Flag("--num-workers", int, "data.num_workers"),
    Flag("--valid-num-workers", int, "data.valid_num_workers"),
    Flag("--logs", str, "run.logs_dir", note="None: write no checkpoint"),
    Flag("--name", str, "run.name"),
    Flag("--log-interval", int, "log.every_steps"),
    Flag("--report-training-batch-acc", bool, "log.batch_accuracy"),
    Flag("--batch-size", int, "train.batch_size"),
    Flag("--valid-batch-size", int, "validate.batch_size"),
    Flag("--max-steps", int, "train.max_steps"),
    Flag("--max-epochs", int, "train.max_epochs"),
    Flag("--valid-step-interval", int, "validate.every_steps", _interval, note="0 or less: off"),
    Flag("--valid-epoch-interval", int, "validate.every_epochs", _interval, note="0 or less: off"),
    Flag("--context-length", int, "data.context_length"),
    Flag("--lr", float, "optim.lr"),
    Flag("--beta1", float, "optim.beta1"),
    Flag("--beta2", float, "optim.beta2"),
    Flag("--eps", float, "optim.eps"),
    Flag("--wd", float, "optim.weight_decay"),
    Flag("--warmup", int, "optim.warmup_steps"),
    Flag("--use-bn-sync", bool, "parallel.sync_batchnorm"),
    Flag(
        "--use-augment",
        bool,
        "data.augment",
        lambda _: {"type": "autoaugment"},
        lambda part: part.type != "none",
        "same as data.augment=autoaugment",
    ),
    Flag("--skip-scheduler", bool, None, note="no effect, as in the reference"),
    Flag("--save-epoch-frequency", int, "checkpoint.every_epochs", _interval, note="0 or less: off"),
    Flag(
        "--save-step-frequency",
        int,
        "checkpoint.every_steps",
        _interval,
        lambda steps: -1 if steps is None else steps,
        "0 or less: off",
    ),
    Flag(
        "--resume",
        str,
        "run.resume",
        _resume,
        lambda resume: None if resume in ("auto", "none") else resume,
        "'' or None: start anew",
    ),
    Flag("--reset-optimizer", bool, "run.reset_optimizer"),
    Flag("--reset-data-offset", bool, "run.reset_position"),
    Flag("--precision", str, "train.precision"),
    Flag("--vision-model", str, "model.image"),
    Flag("--mask-ratio", float, "model.mask_ratio"),
    Flag("--clip-weight-path", str, "model.image_weights", _text_or_null),
    Flag("--freeze-vision", bool, "model.freeze_image"),
    Flag("--text-model", str, "model.text"),
    Flag("--bert-weight-path", str, "model.text_weights", _text_or_null),
    Flag("--grad-checkpointing", bool, "model.recompute"),
    Flag("--use-flash-attention", bool, "model.flash_attention"),
    Flag("--accum-freq", int, "train.accumulate"),
    Flag(
        "--gather-with-grad",
        bool,
        "loss.gradient",
        lambda _: "exact",
        lambda _: False,
        "the default: the gradient over all ranks is exact with and without this flag",
    ),
    Flag(
        "--skip-aggregate",
        bool,
        "loss.gather",
        lambda _: False,
        lambda gather: not gather,
        "contrast inside each rank's own batch only",
    ),
    Flag("--debug", bool, "run.debug"),
    Flag("--seed", int, "run.seed"),
    Flag("--distillation", bool, "distill.enabled"),
    Flag("--teacher-model-name", str, "distill.teacher", _text_or_null),
    Flag("--kd_loss_weight", float, "distill.weight"),
)


class _Parser(argparse.ArgumentParser):
    """Ends in a ConfigError, one sentence, where argparse would print the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see --help")


def parser() -> argparse.ArgumentParser:
    """The reference's flags with `SUPPRESS` as default: a namespace holds what was typed and nothing else."""
    from cn_clip.config.describe import defaults, describe  # reads source files: only for a parser

    meanings, default_of = describe(TrainConfig), defaults(TrainConfig)
    words = _Parser(
        argument_default=argparse.SUPPRESS,
        description="Train image and text towers on pairs.",
    )
    words.add_argument("--config", metavar="FILE", help="YAML of settings; typed flags and --set win over it")
    words.add_argument(
        "--set",
        action="append",
        dest="settings",
        metavar="NAME=VALUE",
        help="any setting by its path, for example --set optim.lr=1e-5; may be repeated and wins over all else",
    )
    words.add_argument(
        "--dry-run",
        action="store_true",
        dest="dry_run",
        help="look whether everything is there that the run needs, print its plan, and start nothing",
    )
    for flag in FLAGS:
        parts = [f"[{flag.setting}] {meanings.get(flag.setting, '')}".strip()] if flag.setting else []
        if flag.note:
            parts.append(f"({flag.note})")
        if flag.kind is not bool and flag.setting in default_of:
            parts.append(f"[default: {default_of[flag.setting]}]")
        help_text = " ".join(parts).replace("%", "%%")
        if flag.kind is bool:
            words.add_argument(flag.name, dest=flag.dest, action="store_true", help=help_text)
        else:
            words.add_argument(
                flag.name, dest=flag.dest, type=flag.kind, metavar=flag.kind.__name__, help=help_text
            )
    return words


def parse_train_flags(words: Sequence[str] | None = None) -> tuple[str | None, list[Override]]:
    """(`--config` file or None, overrides in order of authority: typed flags, then `--set`)."""
    typed, unknown = parser().parse_known_args(words)
    if unknown:
        raise ConfigError(_unknown_flag(unknown[0]))
    given = vars(typed)
    overrides: list[Override] = []
    for flag in FLAGS:
        if flag.dest in given:
            overrides += _overrides(flag, given[flag.dest])
    overrides += [parse_override(word) for word in given.get("settings", [])]
    return given.get("config"), overrides


def wants_dry_run(words: Sequence[str] | None = None) -> bool:
    """Whether `--dry-run` was typed."""
    return "dry_run" in vars(parser().parse_known_args(words)[0])


def _overrides(flag: Flag, value: Any) -> list[Override]:
    if flag.setting is None:
        log.warning("%s has %s", flag.name, flag.note)
        return []
    if flag.name == "--logs" and _text_or_null(value) is None:
        # The reference writes its log below a folder called "None"; here only the checkpoints are left out.
        return [("checkpoint.enabled", False)]
    return [(flag.setting, flag.read(value))]


def _unknown_flag(word: str) -> str:
    name = word.partition("=")[0]
    if name.endswith((".yaml", ".yml")):
        return f"{name} is not a flag of training; did you mean --config {name}?"
    near = difflib.get_close_matches(
        name, [flag.name for flag in FLAGS] + ["--config", "--set", "--dry-run"], n=1
    )
    hint = (
        f"did you mean {near[0]}?"
        if near
        else "settings without a flag are given as --set NAME=VALUE, see --help"
    )
    return f"{name} is not a flag of training; {hint}"


def reference_params(config: TrainConfig) -> dict[str, Any]:
    """The reference's argument names and values for `config`, as its `params_*.txt` and `Params:` lines list them.

    `skip_scheduler` and `gather_with_grad` change nothing here and stand at the reference's defaults.
    """
    params: dict[str, Any] = {
        flag.dest: flag.write(_setting(config, flag.setting)) for flag in FLAGS if flag.setting
    }
    params["skip_scheduler"] = False
    params["aggregate"] = not params["skip_aggregate"]
    return params


def _setting(config: TrainConfig, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        # a loss without this option (it compares no gathered batch) answers with the reference's default
        value = getattr(value.options, name, True) if isinstance(value, Part) else getattr(value, name)
    return value
