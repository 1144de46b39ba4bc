"""The prediction file that the ELEVATER benchmark (arXiv:2204.08790) takes.

Shapes: N pictures, K classes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TextIO

from torch import Tensor, nn
from tqdm import tqdm

from cn_clip.errors import DataError
from cn_clip.eval.whole_file import check_writable, open_whole

DECIMALS = 6
SEED = 123
"""The file names one; nothing here is random."""


def output_path(save_dir: str, dataset: str) -> Path:
    """`save_dir/dataset.json`, whose folder is made when missing; DataError when it cannot be written there."""
    folder = Path(save_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"cannot make the folder {folder}: {error.strerror}; choose another --save-dir"
        ) from error
    check_writable(folder / f"{dataset}.json")
    return folder / f"{dataset}.json"


def write_predictions(
    path: str | os.PathLike[str], dataset: str, image_tower: str, model: nn.Module, scores_NK: Tensor
) -> None:
    """Write probabilities and the model's size as one JSON line, whole or not at all."""
    if not bool(scores_NK.isfinite().all()):
        raise DataError(
            "the model gives probabilities that are not finite: check the weights, or use --precision fp32"
        )
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    visual = model.get_submodule("visual")
    facts = {
        "model_name": f"CN-CLIP-{image_tower}",
        "dataset_name": dataset,
        "num_trainable_params": 0,
        "num_params": num_parameters,
        "num_visual_params": sum(parameter.numel() for parameter in visual.parameters()),
        "num_backbone_params": num_parameters,
        "n_shot": 0,
        "rnd_seeds": [SEED],
    }
    with open_whole(path) as stream:
        stream.write(json.dumps(facts)[:-1] + ', "predictions": [[')
        _write_rows(stream, scores_NK, Path(path).name)
        stream.write("]]}")


def _write_rows(stream: TextIO, scores_NK: Tensor, name: str) -> None:
    # row by row: all numbers of ImageNet as Python floats would take gigabytes
    for row, scores_K in enumerate(tqdm(scores_NK, desc=name, unit=" rows", disable=None)):
        rounded = [round(score, DECIMALS) for score in scores_K.tolist()]
        stream.write((", " if row else "") + json.dumps(rounded))
