"""The tlama reference against Hugging Face Llama and its document."""

import dataclasses
import math

import pytest
import torch
from tiny import relative_l2
from transformers import LlamaConfig, LlamaForCausalLM

from jaxllm.interop.reference.positions import apply_rope, compute_freqs_cis
from jaxllm.interop.reference.tlama.model import Attention, FeedForward, TlamaConfig, Transformer

CONFIG = TlamaConfig(
    d_model=48,
    n_layers=2,
    n_heads=6,
    n_kv_heads=2,
    vocab_size=90,
    multiple_of=16,
    rope_theta=10000.0,
    max_batch_size=3,
    max_seq_len=24,
)
CACHED = dataclasses.replace(CONFIG, kv_cache=True)
TOKENS = torch.randint(0, 90, (2, 21), generator=torch.Generator().manual_seed(1))


def half_split(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorders rows: Hugging Face rotates elements (j, j + H/2), tlama (2j, 2j + 1)."""
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def as_hugging_face(model: Transformer) -> LlamaForCausalLM:
    config, H = model.config, model.config.head_dim
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=model.layers[0].ffn.w1.out_features,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.num_kv_heads,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
    )
    names = {
        **{"token_emb": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"},
        **{"attention.Wq": "self_attn.q_proj", "attention.Wk": "self_attn.k_proj"},
        **{"attention.Wv": "self_attn.v_proj", "attention.Wo": "self_attn.o_proj"},
        **{"ffn.w1": "mlp.gate_proj", "ffn.w3": "mlp.up_proj", "ffn.w2": "mlp.down_proj"},
        **{"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    }
    state_dict = {}
    for name, value in model.named_parameters():
        prefix, short = "", name.removesuffix(".weight")
        if short.startswith("layers."):
            _, i, short = short.split(".", 2)
            prefix = f"model.layers.{i}."
        is_rotated = short in ("attention.Wq", "attention.Wk")
        state_dict[f"{prefix}{names[short]}.weight"] = half_split(value, H) if is_rotated else value
    theirs.load_state_dict(state_dict)
    return theirs.eval()


def test_logits_equal_hugging_face_llama(draw):
    model = draw(Transformer(CONFIG)).float()
    theirs = as_hugging_face(model)
    with torch.no_grad():
        assert relative_l2(model(TOKENS)[0], theirs(TOKENS).logits) <= 1e-5


@pytest.mark.parametrize("split", [1, 7, 20])
def test_cached_equals_uncached(draw, split):
    whole = draw(Transformer(CONFIG))(TOKENS)[0]
    model = draw(Transformer(CACHED))
    parts = [model(TOKENS[:, :split])[0]]
    parts += [model(TOKENS[:, i : i + 1], i)[0] for i in range(split, TOKENS.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)


def test_a_cache_does_not_change_gradients(draw):
    targets = TOKENS.roll(-1, dims=1)
    plain, cached = draw(Transformer(CONFIG)), draw(Transformer(CACHED))
    for model in (plain, cached):
        loss = model(TOKENS, 0, targets)[1]
        assert loss.dtype == torch.float64
        loss.backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(cached.get_parameter(name).grad, parameter.grad)


def test_float64_is_float64_throughout(draw):
    """Rotations in float32 would leave an error of 1e-7."""
    model = draw(Transformer(CONFIG))
    torch.testing.assert_close(
        model(TOKENS)[0].float(), model.float()(TOKENS)[0], rtol=1e-4, atol=1e-5
    )
    assert compute_freqs_cis(8, 4, dtype=torch.float64).dtype == torch.complex128
    x = torch.randn(1, 1, 1, 8, dtype=torch.float64)
    turned, _ = apply_rope(x, x, compute_freqs_cis(8, 5, dtype=torch.float64)[4:])
    first = x[..., 0] * math.cos(4) - x[..., 1] * math.sin(4)
    torch.testing.assert_close(turned[..., 0], first, rtol=0, atol=1e-15)


def test_bfloat16_stays_bfloat16(draw):
    model = draw(Transformer(CONFIG)).bfloat16()
    assert model(TOKENS)[0].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("d_model", "multiple_of", "multiplier", "width"),
    [(4096, 256, None, 11008), (48, 16, None, 128), (48, 16, 0.7, 144), (64, 32, 1.0, 256)],
)
def test_multiplier_replaces_the_factor_of_two_thirds(d_model, multiple_of, multiplier, width):
    with torch.device("meta"):
        ffn = FeedForward(d_model, 4 * d_model, multiple_of, multiplier)
    assert ffn.w1.weight.shape == ffn.w3.weight.shape == (width, d_model)
    assert ffn.w2.weight.shape == (d_model, width)


def test_initial_weights_have_the_configured_mean_and_std():
    torch.manual_seed(0)
    model = Transformer(dataclasses.replace(CONFIG, vocab_size=4000, weight_init=(0.05, 0.5)))
    for weight in (model.token_emb.weight.detach(), model.output.weight.detach()):
        assert float(weight.mean()) == pytest.approx(0.5, abs=1e-3)
        assert float(weight.std()) == pytest.approx(0.05, rel=1e-2)
    assert bool((model.norm.weight == 1).all())


def test_matrices_decay_and_norms_do_not():
    model = Transformer(CONFIG)
    decayed, kept = model.configure_optimizers(0.1, 1e-3).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert decayed["betas"] == kept["betas"] == (0.9, 0.95)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert len(kept["params"]) == 2 * CONFIG.n_layers + 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"n_heads": 5}, "d_model=48 does not split into n_heads=5"),
        ({"n_heads": 16}, "d_model=48 does not split into n_heads=16 heads of even width"),
        ({"n_kv_heads": 4}, "n_heads=6 is not a multiple of n_kv_heads=4"),
    ],
)
def test_inconsistent_sizes_are_errors(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        dataclasses.replace(CONFIG, **changes)


def test_invalid_positions_are_errors():
    with pytest.raises(ValueError, match="start_pos=3 needs a cache, but kv_cache=False"):
        Transformer(CONFIG)(TOKENS, 3)
    with pytest.raises(ValueError, match="position 48 is beyond the 48 rotations"):
        Transformer(CONFIG)(torch.zeros(1, 49, dtype=torch.long))
    with pytest.raises(ValueError, match="holds 3 sequences of 24 tokens, but 2 sequences of 25"):
        Transformer(CACHED)(TOKENS, 4)
    with pytest.raises(ValueError, match=r"rotations of shape \(3, 4\)"):
        Attention(CONFIG)(torch.zeros(1, 2, 48), 0, compute_freqs_cis(8, 3), None)
