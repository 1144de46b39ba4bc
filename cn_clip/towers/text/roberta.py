"""Chinese BERT / RoBERTa-wwm-ext (arXiv:1906.08101) without pooler; the sentence feature is that of [CLS].

Built on transformers' `BertModel`; state-dict keys are those of Chinese-CLIP below `bert.`.
Shapes: B captions, L tokens, D tower width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import BertConfig, BertModel

from cn_clip.errors import ConfigError
from cn_clip.towers.keyed_attention import key_attention
from cn_clip.towers.keyed_dropout import key_dropout
from cn_clip.towers.sites import Sites
from cn_clip.towers.text import TextTower

PAD_ID = 0  # [PAD] of the Chinese vocabulary


@dataclass(frozen=True, kw_only=True)
class Options:
    vocab_size: int = 21128
    """Entries of the vocabulary."""
    width: int = 768
    """Channels of a token."""
    layers: int = 12
    """Transformer blocks."""
    heads: int = 12
    """Attention heads of a block."""
    mlp_width: int = 3072
    """Channels inside the feed-forward part of a block."""
    max_positions: int = 512
    """Longest caption, in tokens."""
    token_types: int = 2
    """Segments the embedding table knows; captions are all of segment 0."""
    activation: str = "gelu"
    """As transformers names it; `gelu` is the exact one (erf)."""
    dropout: float = 0.1
    """Of embeddings and of each block's two outputs."""
    attention_dropout: float = 0.1
    """Of attention weights."""
    init_std: float = 0.02
    """Standard deviation of fresh weights."""


def build(options: Options) -> TextTower:
    return RobertaTower(options)


class RobertaTower(BertModel):
    def __init__(self, options: Options) -> None:
        config = BertConfig(
            vocab_size=options.vocab_size,
            hidden_size=options.width,
            num_hidden_layers=options.layers,
            num_attention_heads=options.heads,
            intermediate_size=options.mlp_width,
            hidden_act=options.activation,
            hidden_dropout_prob=options.dropout,
            attention_probs_dropout_prob=options.attention_dropout,
            max_position_embeddings=options.max_positions,
            type_vocab_size=options.token_types,
            initializer_range=options.init_std,
            layer_norm_eps=1e-12,
            pad_token_id=PAD_ID,
        )
        super().__init__(config, add_pooling_layer=False)
        # BERT draws the row of [PAD] too, where transformers writes zeros
        nn.init.normal_(self.embeddings.word_embeddings.weight, std=options.init_std)
        self.sites = Sites()
        key_attention(self, self.sites)
        key_dropout(self)

    @property
    def width(self) -> int:
        return self.config.hidden_size

    @property
    def pad_id(self) -> int:
        return PAD_ID

    def features(self, tokens_BL: Tensor, mask_BL: Tensor) -> Tensor:
        if tokens_BL.shape[1] > self.config.max_position_embeddings:
            raise ConfigError(
                f"captions of {tokens_BL.shape[1]} tokens are longer than the text tower takes: "
                f"set data.context_length to at most {self.config.max_position_embeddings}"
            )
        return self(tokens_BL, attention_mask=mask_BL).last_hidden_state[:, 0]

    def blocks(self) -> list[nn.Module]:
        return list(self.encoder.layer)
