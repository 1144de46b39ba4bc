"""Validation in the reference's terms: loss and accuracy inside each rank's batch, averaged over all.

The accuracy depends on the batch size; it is not recall over the whole set.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.clip.model import CLIP
from cn_clip.data.loader import PairLoader
from cn_clip.parallel.gather import sum_over_ranks
from cn_clip.parallel.ranks import Ranks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationResult:
    loss: float
    """Nats."""
    image_to_text_accuracy: float
    """Share, inside batches."""
    text_to_image_accuracy: float
    """Share, inside batches."""
    logit_scale: float
    batch_size: int
    """Pairs per rank."""


@torch.no_grad()
def validate(model: CLIP, loader: PairLoader, ranks: Ranks) -> ValidationResult:
    """Loss and accuracies in full precision; leaves the model in evaluation mode."""
    model.eval()
    sums, batch_size = torch.zeros(4, device=ranks.device), 0
    for number, batch in enumerate(loader, 1):
        batch = batch.to(ranks.device)
        image_BE, text_BE, scale = model(batch.images_BCHW, batch.tokens_BL)
        sums += _batch_sums(image_BE.float(), text_BE.float(), scale.float())
        batch_size = len(batch)
        if number % 100 == 0:
            logger.info("Evaluated %d/%d batches...", number, len(loader))
    loss, image_hits, text_hits, num_pairs = sum_over_ranks(sums, ranks).tolist()
    return ValidationResult(
        loss / num_pairs, image_hits / num_pairs, text_hits / num_pairs, model.logit_scale.item(), batch_size
    )


def _batch_sums(image_BE: Tensor, text_BE: Tensor, scale: Tensor) -> Tensor:
    """(4,) loss times pairs, right captions, right pictures, pairs."""
    logits_BB = scale * image_BE @ text_BE.T
    match_B = torch.arange(len(logits_BB), device=logits_BB.device)
    loss = (F.cross_entropy(logits_BB, match_B) + F.cross_entropy(logits_BB.T, match_B)) / 2
    image_hits = (logits_BB.argmax(1) == match_B).sum()
    text_hits = (logits_BB.argmax(0) == match_B).sum()
    return torch.stack([loss * len(match_B), image_hits, text_hits, torch.full_like(loss, len(match_B))])
