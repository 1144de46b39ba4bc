from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from cn_clip.errors import ConfigError
from cn_clip.towers.keyed_dropout import KeyedDropout
from cn_clip.towers.text.roberta import Options, RobertaTower

TINY = Options(vocab_size=100, width=32, layers=2, heads=2, mlp_width=64, max_positions=16)


@pytest.fixture
def tower() -> RobertaTower:
    torch.manual_seed(0)
    return RobertaTower(TINY).eval()


@pytest.fixture
def tokens() -> torch.Tensor:
    tokens = torch.randint(1, 100, (3, 12), generator=torch.Generator().manual_seed(1))
    tokens[0, 4:] = 0
    tokens[1, 7:] = 0
    tokens[2, 9:] = 0
    return tokens


def test_shapes(tower: RobertaTower, tokens: torch.Tensor) -> None:
    assert tower.features(tokens, tokens.ne(0)).shape == (3, 32)
    assert (tower.width, tower.pad_id, len(tower.blocks())) == (32, 0, 2)


def test_padding_changes_nothing(tower: RobertaTower, tokens: torch.Tensor) -> None:
    padded = tower.features(tokens, tokens.ne(0))
    trimmed = tower.features(tokens[:, :9], tokens[:, :9].ne(0))
    torch.testing.assert_close(padded, trimmed, rtol=0, atol=1e-5)
    for row, length in enumerate((4, 7, 9)):
        alone = tokens[row : row + 1, :length]
        torch.testing.assert_close(padded[row], tower.features(alone, alone.ne(0))[0], rtol=0, atol=1e-5)


def test_masked_tokens_are_not_seen(tower: RobertaTower, tokens: torch.Tensor) -> None:
    mask = tokens.ne(0)
    other = torch.where(mask, tokens, torch.full_like(tokens, 55))
    torch.testing.assert_close(tower.features(tokens, mask), tower.features(other, mask), rtol=0, atol=1e-6)
    assert not torch.allclose(
        tower.features(tokens, mask), tower.features(tokens, torch.ones_like(mask)), atol=1e-4
    )


def test_mask_of_numbers_is_taken_too(tower: RobertaTower, tokens: torch.Tensor) -> None:
    mask = tokens.ne(0)
    assert torch.equal(tower.features(tokens, mask), tower.features(tokens, mask.long()))


def test_a_caption_longer_than_the_positions(tower: RobertaTower) -> None:
    with pytest.raises(ConfigError, match="17 tokens.*data.context_length to at most 16"):
        tower.features(torch.ones(1, 17, dtype=torch.long), torch.ones(1, 17))


def test_fresh_weights_are_those_of_bert() -> None:
    torch.manual_seed(0)
    tower = RobertaTower(Options(vocab_size=4000, width=64, layers=1, heads=2, mlp_width=64, init_std=0.05))
    words = tower.embeddings.word_embeddings.weight
    assert words.std().item() == pytest.approx(0.05, rel=0.02)
    assert words[0].abs().sum() > 0, "[PAD] has a drawn row too"
    layer = tower.encoder.layer[0]
    assert layer.attention.self.query.weight.std().item() == pytest.approx(0.05, rel=0.1)
    assert layer.attention.self.query.bias.abs().sum() == 0
    assert torch.equal(layer.output.LayerNorm.weight, torch.ones(64))
    assert layer.output.LayerNorm.eps == 1e-12


class Calls(TorchFunctionMode):
    """Counts calls of SDPA."""

    fused = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.fused += func is torch.nn.functional.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("attention_dropout", [0.0, 0.1])
def test_attention_is_torch_s_fused_one_but_for_keyed_dropout(
    tokens: torch.Tensor, keyed: bool, attention_dropout: float
) -> None:
    tower = RobertaTower(replace(TINY, attention_dropout=attention_dropout))
    for training in (False, True):
        tower.train(training)
        with tower.sites.lent(torch.arange(3) if keyed else None), Calls() as calls:
            tower.features(tokens, tokens.ne(0))
        assert calls.fused == (0 if keyed and training and attention_dropout else 2)


def test_the_attention_s_own_dropout_stays_as_it_is(tower: RobertaTower) -> None:
    inner = tower.encoder.layer[0].attention.self
    assert type(inner.dropout) is torch.nn.Dropout and inner.dropout.p == 0.1
    kinds = [type(m) for m in tower.modules() if isinstance(m, torch.nn.Dropout)]
    assert kinds.count(KeyedDropout) == 1 + 2 * 2  # embeddings, and two of each block
    assert len(tower.sites) == 1 + 3 * 2


@pytest.mark.parametrize("dropout", ["dropout", "attention_dropout"])
def test_a_caption_s_key_decides_what_is_dropped(tokens: torch.Tensor, dropout: str) -> None:
    """In any company, trimmed or padded."""
    torch.manual_seed(0)
    tower = RobertaTower(replace(TINY, **{"dropout": 0.0, "attention_dropout": 0.0, dropout: 0.3})).train()
    keys = torch.tensor([21, 22, 23])
    with tower.sites.lent(keys):
        padded = tower.features(tokens, tokens.ne(0))
        trimmed = tower.features(tokens[:, :9], tokens[:, :9].ne(0))
    torch.testing.assert_close(trimmed, padded, rtol=0, atol=1e-5)
    with tower.sites.lent(keys[:1]):
        alone = tower.features(tokens[:1, :4], tokens[:1, :4].ne(0))
    torch.testing.assert_close(alone, padded[:1], rtol=0, atol=1e-5)
    with tower.sites.lent(keys + 100):
        other = tower.features(tokens, tokens.ne(0))
    assert (other - padded).abs().max() > 0.01


def test_keyed_attention_averages_to_the_plain_one(tokens: torch.Tensor) -> None:
    torch.manual_seed(0)
    tower = RobertaTower(replace(TINY, layers=1, dropout=0.0, attention_dropout=0.3))
    attention = tower.encoder.layer[0].attention.self
    hidden = torch.randn(1, 6, 32).expand(4000, -1, -1)
    mask = torch.ones(1, 1, 6, 6, dtype=torch.bool)
    mask[..., 4:] = False
    plain = attention.eval()(hidden[:1], attention_mask=mask)[0]
    with torch.no_grad(), tower.sites.lent(torch.arange(4000)):
        found = attention.train()(hidden, attention_mask=mask.expand(4000, -1, -1, -1))[0]
    bound = 5 * found.std(0) / 4000**0.5 + 1e-6
    assert ((found.mean(0) - plain[0]).abs() < bound).all()


def test_no_pooler(tower: RobertaTower) -> None:
    assert {name.split(".")[0] for name in tower.state_dict()} == {"embeddings", "encoder"}
