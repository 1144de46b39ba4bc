"""Every setting of a training run, its default and its meaning. No torch here: `--help` must stay fast.

A *part* is a setting whose choices are the modules of a folder: `loss: {type: contrastive, targets: positives}` picks
`cn_clip/losses/pair/contrastive.py`, and the other keys are the fields of that module's `Options`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Part:
    """A choice from a registry folder."""

    type: str
    """Module name in the folder."""
    options: Any
    """That module's `Options`; `Any` since each module has a class of its own."""


@dataclass(frozen=True)
class WeightedPart(Part):
    """One of several parts side by side; its `weight` stands beside its `type`."""

    weight: float | None = None
    """Against the others; null where the parts themselves decide."""


def part(kind: str, default: str | None) -> Any:  # Any: dataclasses.field is typed as its default
    """Field whose choices are the modules of the folder `kind`, with that module's own defaults."""
    return field(default=default, metadata={"part": kind})


def parts(kind: str) -> Any:  # Any: as in `part`
    """Field of type `tuple[WeightedPart, ...]`: a list of choices from the folder `kind`."""
    return field(metadata={"parts": kind})


def number(default: float | None, *, at_least: float | None = None, below: float | None = None) -> Any:
    """Field of a number inside these bounds (null passes where the type allows it); `load.build` checks them."""
    return field(default=default, metadata={"at_least": at_least, "below": below})


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str = "train_clip"
    """Folder of this run inside `logs_dir`."""
    logs_dir: str = "./logs/"
    """Where run folders are made."""
    resume: str = "auto"
    """`auto` continues from the run's own `epoch_latest.pt` when there is one; `none` starts anew; else a checkpoint file."""
    reset_optimizer: bool = False
    """Leave out the optimizer state of the checkpoint that is resumed."""
    reset_position: bool = False
    """Start at epoch 0, step 0 instead of where the checkpoint that is resumed stopped."""
    seed: int = number(123, at_least=0, below=2**62)
    """Of data order, dropout, FLIP masks, augmentation and fresh weights."""
    device: str = "auto"
    """`auto` (CUDA when there is one, else CPU) or a torch device name."""
    debug: bool = False
    """Log at DEBUG level."""


@dataclass(frozen=True, kw_only=True)
class Model:
    image: str = "ViT-B-16"
    """Image tower: a file name in `clip/model_configs`, or the path of such a JSON or of a tower folder."""
    text: str = "RoBERTa-wwm-ext-base-chinese"
    """Text tower: likewise."""
    init_from: str | None = None
    """Weights of both towers to start from (a checkpoint file); used when no run is resumed."""
    image_weights: str | None = None
    """OpenAI-CLIP file to start the image tower from."""
    text_weights: str | None = None
    """BERT file to start the text tower from."""
    freeze_image: bool = False
    """Train the text tower only; BatchNorm of a frozen ResNet keeps its statistics."""
    mask_ratio: float = number(0.0, at_least=0, below=1)
    """Share of image patches left out in training (FLIP, arXiv:2212.00794); ViT only, 0 <= ratio < 1."""
    recompute: bool = False
    """Recompute each block in the backward pass to save memory (gradient checkpointing)."""
    channels_last: bool = False
    """Lay out the image tower's convolutions channels-last in memory: faster for ResNet, equal up to rounding."""
    flash_attention: bool = False
    """Kept for the reference's flag: torch takes its own flash kernel wherever one fits, with and without this."""


@dataclass(frozen=True, kw_only=True)
class Data:
    train: Part | None = part("pairs", None)
    """Training pairs, for example `{type: lmdb_pairs, path: $DATAPATH/lmdb/train}`."""
    valid: Part | None = part("pairs", None)
    """Validation pairs; null trains without validation."""
    augment: Part = part("augment", "none")
    """Changes to training pictures."""
    transform: Literal["exact", "fast"] = "fast"
    """Reading of pictures: `fast` decodes JPEG at a reduced size and resizes in 8 bits, `exact` equals the reference to the
    bit (PIL)."""
    context_length: int = number(52, at_least=3)
    """Tokens of a caption, [CLS] and [SEP] included."""
    num_workers: int = number(4, at_least=0)
    """Loader processes per rank for training."""
    valid_num_workers: int = number(1, at_least=0)
    """Loader processes per rank for validation."""
    prefetch: int = number(2, at_least=1)
    """Batches that each loader process has ready."""
    sampler: Literal["shuffled", "unique"] = "shuffled"
    """`shuffled` is the reference's order; `unique` makes global batches in which no picture and no caption comes twice."""
    bad_pairs: Literal["stop", "skip"] = "stop"
    """What a pair that cannot be read does: `stop` ends the run, `skip` lets another pair take its place, and counts."""
    max_bad_share: float = number(0.01, at_least=0, below=1)
    """Share of pairs that `skip` passes over before it ends the run after all."""
    epoch_end: Literal["pad", "reference"] = "pad"
    """`pad` wraps round to whole global batches, the copies shuffled in with the rest; `reference` pads to one micro-batch
    per rank and drops what does not fill an accumulated step."""


@dataclass(frozen=True, kw_only=True)
class Optim:
    lr: float | None = number(None, at_least=0)
    """Peak learning rate; null takes the image tower's own (5e-4, ViT-L 4e-4)."""
    beta1: float | None = number(None, at_least=0, below=1)
    """AdamW; null takes the image tower's own (0.9)."""
    beta2: float | None = number(None, at_least=0, below=1)
    """AdamW; null takes the image tower's own (ViT 0.98, ResNet 0.999)."""
    eps: float | None = number(None, at_least=0)
    """AdamW; null takes the image tower's own (ViT 1e-6, ResNet 1e-8)."""
    weight_decay: float = number(0.2, at_least=0)
    """Of every parameter whose name has none of `bn`, `ln`, `bias`, `logit_scale`."""
    warmup_steps: int = number(500, at_least=0)
    """Optimizer steps of linear warm-up; a cosine to 0 follows."""


@dataclass(frozen=True, kw_only=True)
class Train:
    batch_size: int = number(64, at_least=1)
    """Pairs per rank and micro-batch."""
    accumulate: int = number(1, at_least=1)
    """Micro-batches per optimizer step; the loss is that of the whole global batch."""
    max_steps: int | None = number(None, at_least=1)
    """Optimizer steps; wins over `max_epochs`."""
    max_epochs: int = number(32, at_least=1)
    """Passes over the training pairs."""
    precision: Literal["amp", "amp_bf16", "bf16", "fp16", "fp32"] = "amp"
    """`amp` autocasts to fp16 with a gradient scaler on CUDA and to bf16 elsewhere; `amp_bf16` autocasts to bf16;
    `bf16` and `fp16` hold the weights in that type; `fp32` computes in full precision."""


@dataclass(frozen=True, kw_only=True)
class Validate:
    batch_size: int = number(64, at_least=1)
    """Pairs per rank."""
    every_steps: int | None = number(None, at_least=1)
    """Optimizer steps between validations; null is off."""
    every_epochs: int | None = number(1, at_least=1)
    """Epochs between validations; null is off."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    enabled: bool = True
    """False writes no checkpoint at all, not even of the last epoch."""
    every_epochs: int | None = number(1, at_least=1)
    """Epochs between `epoch{E}.pt` files; the last epoch is always saved."""
    every_steps: int | None = number(None, at_least=1)
    """Optimizer steps between `epoch_{E}_{S}.pt` files; null is off."""


@dataclass(frozen=True, kw_only=True)
class Log:
    every_steps: int = number(10, at_least=1)
    """Optimizer steps between train lines."""
    batch_accuracy: bool = False
    """Add the accuracy inside the batch, both ways, to the train line."""
    tensorboard: bool = True
    """Write loss, learning rate, scale and throughput for TensorBoard into the run folder."""


@dataclass(frozen=True, kw_only=True)
class Parallel:
    sync_batchnorm: bool = False
    """BatchNorm statistics over all ranks (SyncBatchNorm; CUDA only)."""


@dataclass(frozen=True, kw_only=True)
class Distill:
    enabled: bool = False
    """Learn from a teacher's image features too."""
    teacher: str | None = None
    """Checkpoint of the teacher."""
    weight: float = number(0.5, at_least=0)
    """Of the distillation loss beside the contrastive one."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    loss: Part = part("pair_loss", "contrastive")
    """What pulls pairs together; settings of the chosen loss stand beside `type`."""
    optim: Optim = field(default_factory=Optim)
    train: Train = field(default_factory=Train)
    validate: Validate = field(default_factory=Validate)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)
    parallel: Parallel = field(default_factory=Parallel)
    distill: Distill = field(default_factory=Distill)


Settings = Mapping[str, Any]
"""Plain nested data as YAML gives it; `Any` since leaves are strings, numbers, booleans, lists or None."""
