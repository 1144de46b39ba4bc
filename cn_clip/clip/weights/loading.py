"""Fitting weights into a model: every missing, unexpected or misshapen tensor is an error that names it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor, nn

from cn_clip.clip.weights import layouts
from cn_clip.clip.weights.files import Checkpoint, is_jit_archive, read_checkpoint, read_jit_weights
from cn_clip.clip.weights.guess import describe_towers
from cn_clip.clip.weights.layouts import Weights, is_for_training_only
from cn_clip.errors import WeightsError

_SHOWN = 3  # names in an error message


def model_weights(checkpoint: Checkpoint | str | Path) -> Weights:
    """Weights of a checkpoint, a bare state dict or a file of either, in the model's own layout."""
    where = "the checkpoint"
    if isinstance(checkpoint, str | Path):
        where, checkpoint = str(checkpoint), read_checkpoint(checkpoint)
    weights = checkpoint.get("state_dict", checkpoint)
    return layouts.to_plain_layout(_tensors(weights, where))


def _tensors(weights: object, where: str) -> Weights:
    if not isinstance(weights, dict) or not weights:
        raise WeightsError(f"{where} holds no weights by name")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WeightsError(f"{where} holds no weights: its entry {name!r} is a {type(tensor).__name__}")
    return weights


def load_into(model: nn.Module, weights: Weights, where: str) -> None:
    """Give the model all its weights; `where` names their source in errors.

    Any layout that `model_weights` takes will do; a position embedding of another grid is stretched.
    """
    _fit(model, layouts.to_plain_layout(weights), model.state_dict(), where)


def load_image_tower(model: nn.Module, path: str | Path) -> None:
    """Weights of `visual`, and `logit_scale` if there, from an OpenAI-CLIP file (TorchScript or state dict) or a
    checkpoint of two towers; the rest of the model stays."""
    path = Path(path)
    read = read_jit_weights(path) if path.is_file() and is_jit_archive(path) else read_checkpoint(path)
    weights = layouts.image_weights(_tensors(read.get("state_dict", read), str(path)))
    wanted = {name: t for name, t in model.state_dict().items() if name.startswith("visual.")}
    if not any(name.startswith("visual.") for name in weights):
        raise WeightsError(f"{path} has no image tower: none of its names begins with visual.")
    _fit(model, weights, wanted, str(path), also="logit_scale")


def load_text_tower(model: nn.Module, path: str | Path) -> None:
    """Weights of `bert` from a BERT or RoBERTa file, with or without `bert.` before its names, or from a checkpoint of
    two towers; the rest of the model stays."""
    path = Path(path)
    read = read_checkpoint(path)
    weights = layouts.bert_weights(_tensors(read.get("state_dict", read), str(path)))
    wanted = {name: t for name, t in model.state_dict().items() if name.startswith("bert.")}
    if not weights.keys() & wanted.keys():
        raise WeightsError(f"{path} has no text tower: none of its names is one of a BERT")
    _fit(model, weights, wanted, str(path))


def restore_model(
    model: nn.Module,
    clip_state_dict: Weights | None,
    bert_state_dict: Weights | None,
    use_flash_attention: bool = False,
) -> nn.Module:
    """The reference's helper: towers from OpenAI-CLIP and BERT state dicts; returns the model in eval mode.

    Unlike there, weights keep their precision and whatever is missing is an error. `use_flash_attention` changes
    nothing, since the model has one parameter layout.
    """
    own = model.state_dict()
    if clip_state_dict is not None:
        wanted = {name: t for name, t in own.items() if name.startswith("visual.")}
        _fit(model, layouts.image_weights(clip_state_dict), wanted, "clip_state_dict", also="logit_scale")
    if bert_state_dict is not None:
        wanted = {name: t for name, t in own.items() if name.startswith("bert.")}
        _fit(model, layouts.bert_weights(bert_state_dict), wanted, "bert_state_dict")
    return model.eval()


def _fit(model: nn.Module, weights: Weights, wanted: Weights, where: str, also: str = "") -> None:
    """Copy `weights`, which must be those of `wanted` and may hold the one named in `also`, into the model."""
    weights = dict(weights)
    layouts.resize_pos_embed(weights, model)
    own = model.state_dict()
    if "logit_bias" not in own:
        weights.pop("logit_bias", None)  # it shifts all logits alike, so features and rankings do without it
    missing = [name for name in wanted if name not in weights and not _may_be_missing(name)]
    unexpected = [name for name in weights if name not in wanted and name != also]
    misshapen = [
        f"{name} {list(tensor.shape)} where the model has {list(own[name].shape)}"
        for name, tensor in weights.items()
        if name in own and own[name].shape != tensor.shape
    ]
    faults = [
        f"{what} {_some(names)}"
        for what, names in (("lacks", missing), ("has in excess", unexpected), ("has", misshapen))
        if names
    ]
    if faults:
        raise WeightsError(
            f"{where} does not fit the model: it {' and '.join(faults)}; the file seems to have "
            f"{describe_towers(weights)}, the model has {describe_towers(own)}"
        )
    _check_numbers(model, weights, where)
    model.load_state_dict({**own, **weights})


def _check_numbers(model: nn.Module, weights: Weights, where: str) -> None:
    """WeightsError for parameters that are no numbers: every step and every feature would be lost."""
    wrong = [
        name for name, _ in model.named_parameters() if name in weights and bool(weights[name].isnan().any())
    ]
    if wrong:
        raise WeightsError(
            f"{where} holds NaN in {_some(wrong)}: its run went wrong before it was saved, so take an earlier checkpoint"
        )


def _may_be_missing(name: str) -> bool:
    """BatchNorm's counter is no weight, and files from before it existed lack it; a model for the sigmoid loss may start from
    one for the softmax; what only training has is in no published file."""
    return name.endswith(".num_batches_tracked") or name == "logit_bias" or is_for_training_only(name)


def _some(names: Iterable[str]) -> str:
    first = list(names)
    more = f" and {len(first) - _SHOWN} more" if len(first) > _SHOWN else ""
    return ", ".join(first[:_SHOWN]) + more
