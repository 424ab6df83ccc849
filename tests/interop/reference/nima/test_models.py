"""nima's models with every combination of switches: what tokens see, and how it is tied."""

import itertools
import math

import pytest
import torch
from float64 import assert_close
from torch import nn

from jaxllm.interop.reference.nima.models import PRESETS, GPTModel, TransformerModel

SIZES = {"d_model": 24, "n_heads": 4, "d_ff": 40, "max_seq_len": 16}
POSITIONS = ("learned", "sinusoidal", "rope", "alibi", "relative")
SWITCHES = [*itertools.product(("ffn", "glu", "swiglu"), POSITIONS, ("post", "pre"))]
TOKENS = torch.randint(1, 50, (2, 11), generator=torch.Generator().manual_seed(1))


def gpt(**switches: object) -> GPTModel:
    return GPTModel(50, 2, **SIZES, **switches)


def encoder_decoder(**switches: object) -> TransformerModel:
    return TransformerModel(50, 40, 2, 2, **SIZES, **switches)


@pytest.mark.parametrize(("feed_forward", "position", "norm"), SWITCHES)
def test_every_combination_of_switches_computes_and_learns_in_float64(
    draw, feed_forward, position, norm
):
    switches = {"feed_forward": feed_forward, "position": position, "norm": norm}
    for model, inputs in (
        (draw(gpt(**switches)), (TOKENS,)),
        (draw(encoder_decoder(**switches)), (TOKENS, TOKENS.flip(1) % 40)),
    ):
        logits = model(*inputs)
        assert logits.dtype == torch.float64
        logits.square().mean().backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
        again = model.float()(*inputs).double()
        torch.testing.assert_close(again, logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("position", POSITIONS)
def test_gpt_does_not_see_the_future(draw, position):
    model = draw(gpt(position=position))
    changed = TOKENS.clone()
    changed[:, 6] = 7 - changed[:, 6] % 7
    moved = (model(TOKENS) != model(changed)).any(-1).any(0)
    assert moved.tolist() == [i >= 6 for i in range(11)]


@pytest.mark.parametrize("position", POSITIONS)
def test_order_matters(draw, position):
    """The last token sees the same set of tokens; only positions distinguish the orders."""
    model = draw(GPTModel(50, 1, **SIZES, position=position))
    swapped = TOKENS.clone()
    swapped[:, [2, 5]] = swapped[:, [5, 2]]
    assert (model(TOKENS)[:, -1] - model(swapped)[:, -1]).abs().max() > 1e-3


def test_hidden_tokens_do_not_matter(draw):
    model = draw(gpt())
    mask, other = torch.ones_like(TOKENS), TOKENS.clone()
    mask[1, 3:5] = 0
    other[1, 3:5] = 1 + other[1, 3:5] % 7
    seen = mask.bool()
    assert (other != TOKENS).any()
    torch.testing.assert_close(model(other, mask)[seen], model(TOKENS, mask)[seen], rtol=0, atol=0)
    assert (model(TOKENS, mask)[1, 5:] != model(TOKENS)[1, 5:]).all()


def test_embeddings_are_scaled_in_the_encoder_decoder_only(draw):
    """Models without layers: the output is the input of the first layer."""
    pe = torch.empty(11, 24, dtype=torch.float64)
    for p, j in itertools.product(range(11), range(12)):
        angle = p / 10000 ** (2 * j / 24)
        pe[p, 2 * j], pe[p, 2 * j + 1] = math.sin(angle), math.cos(angle)
    model, target = draw(TransformerModel(50, 40, 0, 0, **SIZES)), TOKENS % 40
    assert_close(model.encode(TOKENS), model.src_embedding.weight[TOKENS] * math.sqrt(24) + pe)
    inputs = model.tgt_embedding.weight[target] * math.sqrt(24) + pe
    assert_close(model(TOKENS, target), model.output_projection(inputs))
    model = draw(GPTModel(50, 0, **SIZES))
    inputs = model.token_embedding(TOKENS) + model.pos_embedding.weight[:11]
    assert_close(model(TOKENS), model.output_projection(model.layer_norm(inputs)))


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_source_padding_does_not_affect_the_output(draw, norm):
    model = draw(encoder_decoder(norm=norm))
    padded = nn.functional.pad(TOKENS, (0, 4))
    target = TOKENS % 40
    assert_close(model(padded, target), model(TOKENS, target))


def test_pre_norm_alone_adds_a_norm_after_each_stack(draw):
    model = draw(encoder_decoder(norm="pre"))
    added = {f"{x}_norm.{y}" for x in ("encoder", "decoder") for y in ("weight", "bias")}
    assert model.state_dict().keys() - encoder_decoder().state_dict().keys() == added
    norm = model.encoder_norm
    normed = (model.encode(TOKENS) - norm.bias) / norm.weight
    expected = torch.zeros(2, 11, dtype=torch.float64)
    assert_close(normed.mean(-1), expected)
    torch.testing.assert_close(normed.std(-1, correction=0), expected + 1, rtol=0, atol=1e-4)


@pytest.mark.parametrize("is_tied", [True, False])
def test_tying_shares_one_table_under_both_names(is_tied):
    for model, table in (
        (gpt(tie_weights=is_tied), "token_embedding.weight"),
        (encoder_decoder(tie_weights=is_tied), "tgt_embedding.weight"),
    ):
        assert {table, "output_projection.weight"} <= model.state_dict().keys()
        embedding, head = model.get_parameter(table), model.output_projection.weight
        assert (embedding is head) == is_tied


def test_initial_weights_match_the_document():
    torch.manual_seed(0)
    sizes = {**SIZES, "d_model": 200, "d_ff": 300}
    for init, tied in itertools.product(("xavier", "normal"), (True, False)):
        model = GPTModel(900, 1, **sizes, init=init, tie_weights=tied)
        table = model.token_embedding.weight.detach()
        assert float(table.std()) == pytest.approx(0.02, rel=0.02)
        linear = model.layers[0].feed_forward.linear1
        bound = math.sqrt(6 / (200 + 300)) if init == "xavier" else 0.02 * math.sqrt(3)
        weight = linear.weight.detach()
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert (float(weight.abs().max()) <= bound) == (init == "xavier")
        assert not linear.bias.any()


@pytest.mark.parametrize(("name", "millions"), [("small", 125), ("medium", 350)])
def test_presets_match_the_document(name, millions):
    """With GPT-2's vocabulary, since the document does not specify one."""
    with torch.device("meta"):
        model = GPTModel(50257, **PRESETS[name], max_seq_len=1024)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.02)


def test_the_tiny_preset_is_a_gpt():
    assert GPTModel(50, **PRESETS["tiny"])(TOKENS).shape == (2, 11, 50)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"position": "none"}, "position='none' is not one of learned, sinusoidal"),
        ({"init": "zeros"}, "init='zeros' is not one of xavier, normal"),
    ],
)
def test_invalid_options_are_errors(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        GPTModel(50, 1, **SIZES | options)


def test_a_too_long_sequence_is_an_error():
    with pytest.raises(ValueError, match="17 tokens exceed max_seq_len=16"):
        gpt()(torch.ones(1, 17, dtype=torch.long))
