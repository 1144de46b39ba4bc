"""Dropout of other architectures: keyed where their modules allow it."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AlbertConfig,
    AutoModel,
    DistilBertConfig,
    ModernBertConfig,
    PreTrainedConfig,
    Qwen2Config,
    XLMRobertaConfig,
)

from cn_clip.towers.text.hf_text import HfTextTower, Options

SHARED = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
KEYED = {
    "albert": AlbertConfig(
        **SHARED, **SIZES, embedding_size=16, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
    ),
    "xlm-roberta": XLMRobertaConfig(**SHARED, **SIZES, max_position_embeddings=40),
    "distilbert": DistilBertConfig(**SHARED, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    "modernbert": ModernBertConfig(
        **SHARED,
        **SIZES,
        cls_token_id=1,
        sep_token_id=2,
        attention_dropout=0.1,
        mlp_dropout=0.1,
        embedding_dropout=0.1,
    ),
}
KEYS = torch.arange(6) * 3


@pytest.fixture
def tokens() -> Tensor:
    tokens = torch.randint(3, 60, (6, 12), generator=torch.Generator().manual_seed(1))
    tokens[torch.arange(12) >= torch.tensor([5, 9, 10, 8, 10, 3])[:, None]] = 0
    return tokens


def build(config: PreTrainedConfig, folder: Path) -> HfTextTower:
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    return HfTextTower(Options(folder=str(folder), pooling="mean")).train()


def encode(tower: HfTextTower, tokens: Tensor, keys: Tensor) -> Tensor:
    with torch.no_grad(), tower.sites.lent(keys):
        return tower.features(tokens, tokens.ne(0))


@pytest.mark.parametrize("name", KEYED)
def test_dropout_of_a_caption_follows_its_key(name: str, tokens: Tensor, tmp_path: Path) -> None:
    tower = build(KEYED[name], tmp_path)
    whole = encode(tower, tokens, KEYS)
    torch.testing.assert_close(encode(tower, tokens[2:4, :10], KEYS[2:4]), whole[2:4], rtol=0, atol=1e-5)
    assert (encode(tower, tokens, KEYS + 100) - whole).abs().max() > 0.01
    tower.eval()
    assert torch.equal(encode(tower, tokens, KEYS), encode(tower, tokens, KEYS + 100))


def test_attention_that_looks_one_way_stays_with_torch(tokens: Tensor, tmp_path: Path) -> None:
    """Its mask may be left to the kernel, so its dropout is the kernel's too."""
    tower = build(Qwen2Config(**SHARED, **SIZES, num_key_value_heads=2, attention_dropout=0.5), tmp_path)
    assert len(tower.sites) == 0
    torch.manual_seed(3)
    first = encode(tower, tokens, KEYS)
    torch.manual_seed(3)
    assert torch.equal(encode(tower, tokens, KEYS + 100), first)
    assert not torch.equal(encode(tower, tokens, KEYS), first)
