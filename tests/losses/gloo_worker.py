"""One rank that runs every loss on its part of the batch, over gloo: output folder."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import dense  # beside this script
import torch
from torch import Tensor

from cn_clip.errors import run_door
from cn_clip.losses.distillation import similarity_gradients
from cn_clip.losses.pair import PairGradients
from cn_clip.losses.pair.contrastive import contrastive_gradients
from cn_clip.losses.pair.sigmoid import sigmoid_gradients
from cn_clip.parallel.gather import gather_rows
from cn_clip.parallel.ranks import start_ranks


def main(folder: str) -> None:
    torch.set_num_threads(1)
    with start_ranks("cpu") as ranks:
        rows = dense.cut(ranks.world_size, ranks.rank)

        def gather(columns_kN: Tensor) -> Tensor:
            return gather_rows(columns_kN[None], ranks)

        found: dict[str, PairGradients] = {}
        for hard in (False, True):
            batch = dense.Batch.make(hard=hard)
            order = dense.column_order(ranks.world_size, len(batch.text))
            words = (batch.image[rows], batch.text[order], batch.scale)
            ids = (batch.rows.at(rows), batch.columns.at(order), gather)
            for targets in dense.TARGETS:
                for smoothing in (0.0, 0.2):
                    found[f"contrastive {targets} {smoothing} {hard}"] = contrastive_gradients(
                        *words, *ids, bias=batch.bias, targets=targets, smoothing=smoothing, tile=3
                    )
                found[f"sigmoid {targets} 0.0 {hard}"] = sigmoid_gradients(
                    *words, *ids, bias=batch.bias, targets=targets, tile=3
                )
        batch, (image, text, scale) = dense.Batch.make(hard=False), dense.teacher()
        found["similarity"] = similarity_gradients(
            batch.image[rows], batch.text, batch.scale, image[rows], text, scale, gather, tile=3
        )
        results = {name: _tensors(gradients) for name, gradients in found.items()}
        torch.save(results, Path(folder) / f"{ranks.rank}.pt")


def _tensors(found: PairGradients) -> dict[str, Tensor]:
    named = {field.name: getattr(found, field.name) for field in fields(found)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


if __name__ == "__main__":
    run_door(lambda: main(*sys.argv[1:]))
