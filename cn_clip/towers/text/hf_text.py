"""A text encoder of a local Hugging Face folder, whatever its architecture; captions come from its own tokenizer.

Its dropout follows the keys of the pairs where its modules allow it: each `nn.Dropout` over features that lie pair by pair,
and the attention weights of a two-way model that takes SDPA. The rest (functional dropout, eager or flex attention, layers
left out at random) draws from torch's generators, so that there a step depends on how its batch is cut. A module that a
model runs several times in a pass (ALBERT) drops the same elements each time.

Shapes: B captions, L tokens, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from cn_clip.errors import ConfigError, WeightsError
from cn_clip.towers.keyed_attention import key_attention
from cn_clip.towers.keyed_dropout import key_dropout
from cn_clip.towers.sites import Sites
from cn_clip.towers.text import TextTower


@dataclass(frozen=True, kw_only=True)
class Options:
    folder: str
    """Hugging Face folder: `config.json` and weights."""
    pooling: Literal["first", "mean"] = "first"
    """The caption's feature: the first token ([CLS]), or the mean of those that count."""


def build(options: Options) -> TextTower:
    return HfTextTower(options)


class HfTextTower(nn.Module):
    def __init__(self, options: Options) -> None:
        super().__init__()
        try:
            config = AutoConfig.from_pretrained(options.folder, local_files_only=True)
            self.trunk = AutoModel.from_pretrained(
                options.folder, config=config, local_files_only=True, dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise WeightsError(
                f"transformers cannot read the text tower in {options.folder}: {reason}"
            ) from error
        if not isinstance(config.pad_token_id, int):
            raise ConfigError(
                f"{options.folder}/config.json has no pad_token_id: add the id that fills up captions"
            )
        self.pooling = options.pooling
        self._width, self._pad_id = int(config.hidden_size), config.pad_token_id
        # a pooler is not part of the sentence feature, and parameters without gradient stop data-parallel training
        for name, child in self.trunk.named_children():
            if name == "pooler":
                child.requires_grad_(False)
        self.sites = Sites()
        key_attention(self.trunk, self.sites)
        key_dropout(self)

    @property
    def width(self) -> int:
        return self._width

    @property
    def pad_id(self) -> int:
        return self._pad_id

    def features(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        hidden_BLD = self.trunk(tokens_BL, attention_mask=mask_BL.long()).last_hidden_state
        if self.pooling == "first":
            return hidden_BLD[:, 0]
        counts_BL1 = mask_BL[:, :, None].to(hidden_BLD.dtype)
        return (hidden_BLD * counts_BL1).sum(1) / counts_BL1.sum(1)

    def blocks(self) -> list[nn.Module]:
        lists = [module for module in self.trunk.modules() if isinstance(module, nn.ModuleList)]
        return list(lists[0]) if lists else []
