"""The reference's public functions: published models by name, local checkpoints, tokens and transforms."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cn_clip.clip.model import CLIP, build_model
from cn_clip.clip.precision import convert_weights
from cn_clip.clip.weights.files import Checkpoint, is_jit_archive, read_checkpoint, read_jit_weights
from cn_clip.clip.weights.guess import guess_image_px, guess_towers
from cn_clip.clip.weights.loading import load_into, model_weights, restore_model
from cn_clip.errors import ConfigError, DeviceError, WeightsError

if TYPE_CHECKING:
    from torchvision.transforms import Compose

__all__ = ["available_models", "create_model", "image_transform", "load", "load_from_name", "tokenize"]

_MODELSCOPE_ORG = "AI-ModelScope"
_HUGGINGFACE_ORG = "OFA-Sys"

_MODELS = {
    "ViT-B-16": ("chinese-clip-vit-base-patch16", "clip_cn_vit-b-16.pt"),
    "ViT-L-14": ("chinese-clip-vit-large-patch14", "clip_cn_vit-l-14.pt"),
    "ViT-L-14-336": ("chinese-clip-vit-large-patch14-336px", "clip_cn_vit-l-14-336.pt"),
    "ViT-H-14": ("chinese-clip-vit-huge-patch14", "clip_cn_vit-h-14.pt"),
    "RN50": ("chinese-clip-rn50", "clip_cn_rn50.pt"),
}
"""Name -> (repository of the hub, file in it)."""

_MODEL_INFO: dict[str, dict[str, Any]] = {
    "ViT-B-16": {"struct": "ViT-B-16@RoBERTa-wwm-ext-base-chinese", "input_resolution": 224},
    "ViT-L-14": {"struct": "ViT-L-14@RoBERTa-wwm-ext-base-chinese", "input_resolution": 224},
    "ViT-L-14-336": {"struct": "ViT-L-14-336@RoBERTa-wwm-ext-base-chinese", "input_resolution": 336},
    "ViT-H-14": {"struct": "ViT-H-14@RoBERTa-wwm-ext-large-chinese", "input_resolution": 224},
    "RN50": {"struct": "RN50@RBT3-chinese", "input_resolution": 224},
}
"""Name -> its two towers and the side of its pictures in pixels; `Any` since the reference mixes strings and numbers."""

DEFAULT_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class ModelNotFoundError(WeightsError, RuntimeError):
    """No such model or file; a RuntimeError too, which callers of the reference catch."""


def available_models() -> list[str]:
    """Names of the published models."""
    return list(_MODELS)


def load_from_name(
    name: str,
    device: str | torch.device = DEFAULT_DEVICE,
    download_root: str | None = None,
    vision_model_name: str | None = None,
    text_model_name: str | None = None,
    input_resolution: int | None = None,
    use_modelscope: bool = False,
) -> tuple[CLIP, Compose]:
    """(model in eval mode, picture transform) of a published model's name or of a local checkpoint file.

    A local file's towers and picture size are told from its weights where they are not given. Weights are fp16 on CUDA
    and fp32 elsewhere; there too they are those of fp16, as published numbers were made. To train on, call `.float()`
    first: AdamW on fp16 weights ends in NaN.
    """
    if name in _MODELS:
        path = _download(name, download_root, use_modelscope)
        info = _MODEL_INFO[name]
        image, text = info["struct"].split("@")
        weights, image_px = model_weights(path), info["input_resolution"]
    elif Path(name).is_file():
        path, weights = name, model_weights(name)
        image, text = vision_model_name or "", text_model_name or ""
        if not image or not text:
            guessed = guess_towers(weights)
            image, text = image or guessed[0], text or guessed[1]
        image_px = input_resolution or guess_image_px(weights)
    else:
        raise ModelNotFoundError(
            f"Model {name} not found: it is neither a file nor one of the published models {available_models()}"
        )
    model = _placed(_rounded_model(image, text, weights, path, image_px), device)
    return model.eval(), image_transform(model.visual.image_px)


def create_model(model_name: str, checkpoint: Checkpoint | None = None) -> CLIP:
    """Model `VISION@TEXT` with fp16 weights, fresh or those of a checkpoint, in train mode as the reference's."""
    image, _, text = model_name.partition("@")
    if not text:
        raise ConfigError(
            f"create_model takes VISION@TEXT, for example ViT-B-16@RBT3-chinese, not {model_name}"
        )
    weights = model_weights(checkpoint) if checkpoint else None
    return _rounded_model(image, text, weights, "the checkpoint", None)


def _rounded_model(
    image: str, text: str, weights: dict[str, Tensor] | None, where: str, image_px: int | None
) -> CLIP:
    model = build_model(image, text, image_px)
    if weights is not None:
        load_into(model, weights, where)
    convert_weights(model)
    return model


def load(
    model: CLIP,
    device: str | torch.device = DEFAULT_DEVICE,
    clip_path: str | None = None,
    bert_path: str | None = None,
    use_flash_attention: bool = False,
) -> CLIP:
    """The model in eval mode, its towers started from OpenAI-CLIP and BERT files; fp16 on CUDA, fp32 elsewhere.

    A file without the tower it is named for is an error. `use_flash_attention` changes nothing.
    """
    clip_weights = bert_weights = None
    if clip_path:
        path = Path(clip_path)
        jit = path.is_file() and is_jit_archive(path)
        clip_weights = read_jit_weights(path) if jit else model_weights(path)
    if bert_path:
        read = read_checkpoint(bert_path)
        bert_weights = read.get("state_dict", read)
    restore_model(model, clip_weights, bert_weights)
    return _placed(model, device)


def _placed(model: CLIP, device: str | torch.device) -> CLIP:
    """The model on its device: fp16 on CUDA as in the reference, fp32 on all others, which may lack fp16 kernels."""
    if torch.device(device).type != "cuda":
        return model.float().to(device)
    if not torch.cuda.is_available():
        raise DeviceError(
            f"device {device} was asked for, but torch finds no CUDA device here: use device='cpu'"
        )
    convert_weights(model)
    return model.to(device)


def tokenize(texts: str | Sequence[str], context_length: int = 52) -> torch.LongTensor:
    """Token ids [texts, context_length]: [CLS], WordPieces, [SEP], zeros; a longer text loses its end."""
    from cn_clip.clip.tokenizer import tokenize_captions

    captions = [texts] if isinstance(texts, str) else list(texts)
    return tokenize_captions(captions, context_length).long()  # type: ignore[return-value]  # typed as any Tensor


def image_transform(image_size: int = 224) -> Compose:
    """The reference's transform of a PIL picture: squashed to a square, RGB, normalised."""
    from cn_clip.clip.transform import image_transform as transform

    return transform(image_size)


def _download(modelname: str, root: str | None = None, use_modelscope: bool = False) -> str:
    """Path of a published model's file: the one in `root` (default `~/.cache/clip`), else fetched into it."""
    if modelname not in _MODELS:
        raise ModelNotFoundError(f"{modelname!r} is not one of the published models {available_models()}")
    repository, file_name = _MODELS[modelname]
    folder = Path(root or "~/.cache/clip").expanduser()
    target = folder / file_name
    if target.exists():
        if not target.is_file():
            raise ModelNotFoundError(f"{target} exists and is not a file: move it away")
        return str(target)
    page = f"https://{'modelscope.cn' if use_modelscope else 'huggingface.co'}/{_hub_name(repository, use_modelscope)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _fetch(repository, file_name, folder, use_modelscope)
    except (
        Exception
    ) as error:  # each hub has errors of its own for no library, no network, no such file, no space
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        raise ModelNotFoundError(
            f"cannot download {modelname} ({type(error).__name__}: {reason[:160]}); "
            f"get {file_name} from {page} by other means and put it into {folder}"
        ) from error


def _fetch(repository: str, file_name: str, folder: Path, use_modelscope: bool) -> str:
    name = _hub_name(repository, use_modelscope)
    if use_modelscope:
        from modelscope.hub.file_download import model_file_download

        return str(model_file_download(model_id=name, file_path=file_name, local_dir=str(folder)))
    from huggingface_hub import hf_hub_download

    return str(hf_hub_download(name, filename=file_name, local_dir=str(folder)))


def _hub_name(repository: str, use_modelscope: bool) -> str:
    return f"{_MODELSCOPE_ORG if use_modelscope else _HUGGINGFACE_ORG}/{repository}"
