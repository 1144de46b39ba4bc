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


def named_parts(kind: str) -> Any:  # Any: as in `part`
    """Field of type `Mapping[str, Part]`: choices from the folder `kind`, each under a name; none by default."""
    return field(default_factory=dict, metadata={"named_parts": kind})


def number(
    default: float | None,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:  # Any: as in `part`
    """Field of a number inside these bounds (null passes where the type allows it); `load.build` checks them."""
    bounds = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    return field(default=default, metadata=bounds)


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
    image_px: int | None = number(None, at_least=1)
    """Side of the pictures; null is the tower's own. Position embeddings are resized to it."""
    freeze_image: bool = False
    """Train the text tower only; BatchNorm of a frozen ResNet keeps its statistics."""
    freeze_text: bool = False
    """Train the image tower only; the projection of the text features is the text tower's."""
    freeze_image_blocks: int = number(0, at_least=0)
    """First blocks of the image tower, with what stands before them, that are left as they are."""
    freeze_text_blocks: int = number(0, at_least=0)
    """First blocks of the text tower, with its embeddings, that are left as they are."""
    mask_ratio: float = number(0.0, at_least=0, below=1)
    """Share of image patches left out in training (FLIP, arXiv:2212.00794); ViT only, 0 <= ratio < 1."""
    mask_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How `mask_ratio` goes to 0 over the masked part of a stage; `constant` keeps it."""
    unmasked_share: float = number(0.0, at_least=0, below=1)
    """Last share of a stage's steps that is trained on whole pictures (the unmasked tuning of FLIP)."""
    recompute: bool = False
    """Recompute each block in the backward pass to save memory (gradient checkpointing)."""
    compile: bool = False
    """Compile each block of both towers (`torch.compile`)."""
    channels_last: bool = False
    """Lay out the image tower's convolutions channels-last in memory: faster for ResNet, equal up to rounding."""
    flash_attention: bool = False
    """The reference's flag: says which kernel the image tower's attention gets, and warns where no flash kernel fits."""
    attention: Literal["auto", "flash", "flash_attn"] = "auto"
    """Kernel of the image tower's attention: torch's choice; torch's flash kernel or an error; or the flash-attn package."""


@dataclass(frozen=True, kw_only=True)
class Data:
    train: Part | None = part("pairs", None)
    """Training pairs, for example `{type: lmdb_pairs, path: $DATAPATH/lmdb/train}`."""
    valid: Part | None = part("pairs", None)
    """Validation pairs; null trains without validation."""
    valid_sets: Mapping[str, Part] = named_parts("pairs")
    """More validation pairs by name, for example `{muge: {type: lmdb_pairs, path: ...}}`."""
    hard_negatives: int = number(0, at_least=0)
    """Wrong captions taken from each pair's `hard_negatives`, at most; each stands against all pictures of the batch."""
    feature_cache: str | None = None
    """Folder for the features of a frozen image tower, computed once (`auto`: in the run's folder); null is none."""
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
    type: str = "adamw"
    """`adamw` (torch's, fused), or one of timm's optimizers by its name there, for example `lamb` or `lion`."""
    lr: float | None = number(None, at_least=0)
    """Peak learning rate; null takes the image tower's own (5e-4, ViT-L 4e-4)."""
    image_lr: float | None = number(None, at_least=0)
    """Peak learning rate of the image tower; null is `lr`."""
    text_lr: float | None = number(None, at_least=0)
    """Peak learning rate of the text tower and its projection; null is `lr`."""
    image_layer_decay: float = number(1.0, above=0)
    """Factor of the learning rate from each block of the image tower to the one before it; 1 is the same for all."""
    text_layer_decay: float = number(1.0, above=0)
    """The same for the text tower."""
    beta1: float | None = number(None, at_least=0, below=1)
    """AdamW; null takes the image tower's own (0.9)."""
    beta2: float | None = number(None, at_least=0, below=1)
    """AdamW; null takes the image tower's own (ViT 0.98, ResNet 0.999)."""
    eps: float | None = number(None, at_least=0)
    """AdamW; null takes the image tower's own (ViT 1e-6, ResNet 1e-8)."""
    weight_decay: float = number(0.2, at_least=0)
    """Of the parameters that `decay` names."""
    image_weight_decay: float | None = number(None, at_least=0)
    """Of the image tower; null is `weight_decay`."""
    text_weight_decay: float | None = number(None, at_least=0)
    """Of the text tower and its projection; null is `weight_decay`."""
    decay: Literal["reference", "matrices"] = "reference"
    """`reference` decays what has none of `bn`, `ln`, `bias`, `logit_scale` in its name, so BERT's norms and embeddings
    too; `matrices` decays weights of two and more dimensions, without embeddings."""
    warmup_steps: int = number(500, at_least=0)
    """Optimizer steps of linear warm-up; the schedule follows."""
    schedule: Literal["cosine", "constant", "cooldown"] = "cosine"
    """After the warm-up: half a cosine to `end_lr`; the peak; or the peak, then a straight line to `end_lr`."""
    cooldown_steps: int = number(0, at_least=0)
    """Last steps of `cooldown`."""
    end_lr: float = number(0.0, at_least=0)
    """Learning rate at the end of the schedule; towers with a rate of their own end at the same share of it."""
    horizon: Literal["stage", "run"] = "stage"
    """What warm-up and schedule stretch over: each stage anew, or all stages together."""
    max_norm: float | None = number(None, above=0)
    """Norm that the gradients of a step are scaled down to (gradient clipping); null is none."""


@dataclass(frozen=True, kw_only=True)
class Ema:
    decay: float | None = number(None, at_least=0, below=1)
    """Of an average of the weights over steps, which is validated and saved; null is none."""
    warmup: bool = True
    """Begin with a quicker average: decay min(decay, (1 + step) / (10 + step))."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    image_rank: int = number(0, at_least=0)
    """Rank of the adapters (LoRA, arXiv:2106.09685) in the image tower, whose own weights are then frozen; 0 is none."""
    text_rank: int = number(0, at_least=0)
    """The same for the text tower."""
    alpha: float | None = number(None, above=0)
    """Adapters count `alpha / rank`; null is 2."""
    dropout: float = number(0.0, at_least=0, below=1)
    """Of what goes into the adapters."""


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
    randomness: Literal["pair", "micro_batch"] = "pair"
    """What dropout and FLIP masks depend on: each pair's place in the global batch, however it is cut; or the micro-batch,
    with torch's own kernels."""
    text_groups: int = number(1, at_least=1)
    """Groups of like length that the captions of a micro-batch are encoded in, each without the others' padding."""
    encode_once: bool = True
    """Encode a picture or caption that comes twice in a micro-batch once, where nothing random could tell them apart."""
    on_out_of_memory: Literal["halve", "stop"] = "halve"
    """What running out of memory does: halve the micro-batch and repeat the step, or end the run."""
    max_bad_steps: int = number(10, at_least=0)
    """Steps in a row that are skipped for a loss or gradient that is not finite; one more ends the run."""


@dataclass(frozen=True, kw_only=True)
class Validate:
    batch_size: int = number(64, at_least=1)
    """Pairs per rank."""
    every_steps: int | None = number(None, at_least=1)
    """Optimizer steps between validations; null is off."""
    every_epochs: int | None = number(1, at_least=1)
    """Epochs between validations; null is off."""
    recall: bool = True
    """Rank all pictures and captions of each set against each other, whatever the batch, several right ones included."""
    recall_at: tuple[int, ...] = (1, 5, 10)
    """The k of recall@k."""
    max_pairs: int | None = number(None, at_least=1)
    """Pairs of each set that recall is taken over, the first ones; null is all."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    enabled: bool = True
    """False writes no checkpoint at all, not even of the last epoch."""
    every_epochs: int | None = number(1, at_least=1)
    """Epochs between `epoch{E}.pt` files; the last epoch is always saved."""
    every_steps: int | None = number(None, at_least=1)
    """Optimizer steps between `epoch_{E}_{S}.pt` files; null is off."""
    every_minutes: float | None = number(None, at_least=0)
    """Minutes between writings of `epoch_latest.pt` alone; null is off."""
    keep_last: int | None = number(None, at_least=1)
    """Newest files of `every_epochs` and `every_steps` that are kept, the older ones deleted; null keeps all."""
    best: str | None = None
    """Validation number whose best value is kept as `best.pt`, for example `mean_recall`, or `muge/mean_recall` of a named
    set; null keeps none."""
    asynchronous: bool = True
    """Write files in the background while training goes on."""
    safetensors: bool = False
    """Write the weights alone as `.safetensors` beside each `.pt`."""
    sharded: bool = False
    """Each rank writes its part of a folder (`torch.distributed.checkpoint`) for resuming, in place of one whole file."""


@dataclass(frozen=True, kw_only=True)
class Log:
    every_steps: int = number(10, at_least=1)
    """Optimizer steps between train lines."""
    batch_accuracy: bool = False
    """Add the accuracy inside the batch, both ways, to the train line."""
    tensorboard: bool = True
    """Write loss, learning rate, scale and throughput for TensorBoard into the run folder."""
    wandb: str | None = None
    """Weights & Biases project to send the same numbers to; null is none. Needs `pip install wandb`."""
    diagnostics: bool = True
    """Add what the loss sees of a batch: effective negatives, suspected false negatives with their ids, modality gap."""
    summary: bool = True
    """Write `summary.md` with plots when the run ends."""


@dataclass(frozen=True, kw_only=True)
class Parallel:
    engine: Literal["ddp", "fsdp", "zero1", "zero2", "zero3"] = "ddp"
    """What joins the ranks: whole copies (DDP), sharded weights (FSDP2), or DeepSpeed's ZeRO."""
    reshard: bool = True
    """FSDP2 frees a block's whole weights after its forward pass and gathers them again; false keeps them."""
    shard_ranks: int | None = number(None, at_least=1)
    """FSDP2: ranks that share one copy of the weights, for example those of a node (HSDP); null is all."""
    sync: Literal["step", "micro_batch"] = "step"
    """FSDP2: gradients meet once a step, or after each micro-batch, with sharded gradients in between."""
    deepspeed_config: str | None = None
    """JSON of DeepSpeed settings laid over those of `engine` (ZeRO only)."""
    timeout_minutes: float = number(30.0, at_least=0.01)
    """How long a rank waits for the others before the run ends with a message."""
    sync_batchnorm: bool = False
    """BatchNorm statistics over all ranks (SyncBatchNorm; CUDA only)."""


@dataclass(frozen=True, kw_only=True)
class Distill:
    enabled: bool = False
    """Learn from a teacher too."""
    teacher: str | None = None
    """Checkpoint of ours or of the reference, Hugging Face folder, folder of cached features, or ModelScope name."""
    weight: float = number(0.5, at_least=0)
    """Of the distillation loss beside the contrastive one."""
    type: Literal["features", "similarity"] = "features"
    """Learn the teacher's image features (cosine), or its similarities of all pairs of the batch."""
    width: Literal["project", "interpolate"] = "project"
    """Where teacher and student have features of other widths: a learned linear map, or the reference's resizing."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    lora: Lora = field(default_factory=Lora)
    loss: Part = part("pair_loss", "contrastive")
    """What pulls pairs together; settings of the chosen loss stand beside `type`."""
    optim: Optim = field(default_factory=Optim)
    ema: Ema = field(default_factory=Ema)
    train: Train = field(default_factory=Train)
    validate: Validate = field(default_factory=Validate)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    log: Log = field(default_factory=Log)
    parallel: Parallel = field(default_factory=Parallel)
    distill: Distill = field(default_factory=Distill)
    stages: tuple[Mapping[str, Any], ...] = ()
    """Stages of the run, one after the other, each with `epochs` or `steps`, a `name`, and settings laid over the others."""


Settings = Mapping[str, Any]
"""Plain nested data as YAML gives it; `Any` since leaves are strings, numbers, booleans, lists or None."""
