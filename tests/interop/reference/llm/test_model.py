"""The LLM reference against Hugging Face Llama 4 and its documents."""

import dataclasses

import pytest
import torch
from tiny import relative_l2
from torch.nn import functional
from transformers import Llama4ForCausalLM, Llama4TextConfig

from jaxllm.interop.reference.llm.arguments import MoEArgs
from jaxllm.interop.reference.llm.layers import (
    FeedForward,
)
from jaxllm.interop.reference.llm.model import LLM, MaskedEmbedding, ModelArgs, TransformerInput
from jaxllm.interop.reference.llm.moe import MoE

ARGS = ModelArgs(
    dim=48,
    n_layers=4,
    n_heads=6,
    n_kv_heads=2,
    vocab_size=90,
    multiple_of=8,
    ffn_dim_multiplier=1.3,
    ffn_exp=4.0,
    attention_chunk_size=5,
    rope_theta=500000.0,
    use_scaled_rope=True,
    rope_scaling_factor=8.0,
    rope_high_freq_factor=4.0,
    nope_layer_interval=3,
    use_qk_norm=True,
    attn_temperature_tuning=True,
    floor_scale=4.0,
    moe_args=MoEArgs(num_experts=4, top_k=2, interleave_moe_layer_step=2),
    batch_size=3,
    max_seq_len=24,
)
TOKENS = torch.randint(0, 90, (2, 23), generator=torch.Generator().manual_seed(1))
IMAGE = {
    "image_size": {"height": 8, "width": 8},
    "patch_size": {"height": 2, "width": 2},
    **{"dim": 32, "n_layers": 2, "n_heads": 2, "mlp_ratio": 2.0, "output_dim": 24},
    "pixel_shuffle_ratio": 0.5,
}


def logits(model: LLM, tokens: torch.Tensor, start: int = 0) -> torch.Tensor:
    return model(TransformerInput(tokens, start)).logits


def as_hugging_face(model: LLM) -> Llama4ForCausalLM:
    args, moe = model.args, model.args.moe_args
    widths = {type(layer.feed_forward): layer.feed_forward for layer in model.layers}
    theirs = Llama4ForCausalLM(
        Llama4TextConfig(
            vocab_size=args.vocab_size,
            hidden_size=args.dim,
            intermediate_size=widths[MoE].shared_expert.w1.out_features,
            intermediate_size_mlp=widths[FeedForward].w_gate.out_features,
            num_hidden_layers=args.n_layers,
            num_attention_heads=args.n_heads,
            num_key_value_heads=args.num_kv_heads,
            head_dim=args.dim // args.n_heads,
            num_local_experts=moe.num_experts,
            num_experts_per_tok=moe.top_k,
            interleave_moe_layer_step=moe.interleave_moe_layer_step,
            no_rope_layer_interval=args.nope_layer_interval,
            use_qk_norm=args.use_qk_norm,
            attention_chunk_size=args.attention_chunk_size,
            attn_temperature_tuning=args.attn_temperature_tuning,
            floor_scale=int(args.floor_scale),
            attn_scale=args.attn_scale,
            rms_norm_eps=args.norm_eps,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": args.rope_theta,
                "factor": args.rope_scaling_factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": args.rope_high_freq_factor,
                "original_max_position_embeddings": 8192,
            },
        )
    )
    names = {
        **{"attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj"},
        **{"attention.wv": "self_attn.v_proj", "attention.wo": "self_attn.o_proj"},
        **{"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
        "feed_forward.w_gate": "feed_forward.gate_proj",
        "feed_forward.w_value": "feed_forward.up_proj",
        "feed_forward.w_out": "feed_forward.down_proj",
        "feed_forward.shared_expert.w1": "feed_forward.shared_expert.gate_proj",
        "feed_forward.shared_expert.w3": "feed_forward.shared_expert.up_proj",
        "feed_forward.shared_expert.w2": "feed_forward.shared_expert.down_proj",
    }
    stored = dict(model.state_dict())
    state_dict = {
        "model.embed_tokens.weight": stored.pop("tok_embeddings.weight"),
        "model.norm.weight": stored.pop("norm.weight"),
        "lm_head.weight": stored.pop("output.weight"),
    }
    for i, layer in enumerate(model.layers):
        ffn = f"model.layers.{i}.feed_forward."
        if isinstance(layer.feed_forward, MoE):
            experts, own = layer.feed_forward.experts, f"layers.{i}.feed_forward."
            state_dict[ffn + "experts.gate_up_proj"] = torch.cat([experts.w1, experts.w3], -1)
            state_dict[ffn + "experts.down_proj"] = experts.w2
            state_dict[ffn + "router.weight"] = stored.pop(own + "router_DE").T
            for name in ("w1", "w2", "w3"):
                del stored[own + "experts." + name]
    for name, value in stored.items():
        _, i, short = name.removesuffix(".weight").split(".", 2)
        state_dict[f"model.layers.{i}.{names[short]}.weight"] = value
    theirs.load_state_dict(state_dict)
    return theirs.eval()


def test_logits_equal_hugging_face_llama4(draw):
    model = draw(LLM(ARGS)).float()
    theirs = as_hugging_face(model)
    with torch.no_grad():
        assert relative_l2(logits(model, TOKENS), theirs(TOKENS).logits) <= 1e-5


@pytest.mark.parametrize("split", range(1, TOKENS.shape[1]))
def test_cached_equals_uncached_at_every_position(draw, split):
    """Includes every chunk boundary, where Llama 4's own code forgets the mask."""
    whole, model = logits(draw(LLM(ARGS)), TOKENS), draw(LLM(ARGS))
    parts = [logits(model, TOKENS[:, :split])]
    parts += [logits(model, TOKENS[:, i : i + 1], i) for i in range(split, TOKENS.shape[1])]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)


def test_passes_continue_a_sequence_and_position_0_starts_a_new_one(draw):
    whole, model = logits(draw(LLM(ARGS)), TOKENS), draw(LLM(ARGS))
    logits(model, TOKENS.flip(1))
    parts = [logits(model, TOKENS[:, a:b], a) for a, b in ((0, 4), (4, 11), (11, 23))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)


def test_only_layers_without_rope_see_past_their_chunk(draw):
    alone = dataclasses.replace(ARGS, n_layers=2)  # the third layer would be the first without RoPE
    changed = TOKENS.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 90
    for args, is_seen in ((alone, False), (ARGS, True)):
        model = draw(LLM(args))
        moved = (logits(model, TOKENS) != logits(model, changed)).any(-1).any(0)
        assert moved.tolist() == [is_seen or i < 5 for i in range(23)]


def test_layer_index_selects_rope_and_experts():
    model = LLM(ARGS)
    assert [layer.is_nope_layer for layer in model.layers] == [False, False, True, False]
    assert [layer.attention.use_rope for layer in model.layers] == [True, True, False, True]
    assert [layer.attention.use_qk_norm for layer in model.layers] == [True, True, False, True]
    kinds = [type(layer.feed_forward) for layer in model.layers]
    assert kinds == [FeedForward, MoE, FeedForward, MoE]


def test_the_router_and_the_keys_learn(draw):
    """The reference of Llama 4 detaches both; as the oracle of training it must not."""
    model = draw(LLM(ARGS))
    functional.cross_entropy(logits(model, TOKENS).flatten(0, 1), TOKENS.flatten()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_images_replace_the_masked_tokens(draw):
    args = dataclasses.replace(
        ARGS,
        vision_args=ModelArgs.from_json(
            {**dataclasses.asdict(ARGS), "vision_args": IMAGE}
        ).vision_args,
    )
    model = draw(LLM(args))
    generator = torch.Generator().manual_seed(3)
    images = [[torch.randn(1, 3, 8, 8, generator=generator, dtype=torch.float64)], []]
    mask = torch.zeros(2, 23, 1, dtype=torch.bool)
    mask[0, 2:6] = True
    embedding = model.vision_embeddings(images, mask)
    found = model(TransformerInput(TOKENS, 0, MaskedEmbedding(embedding, mask))).logits
    # The same by hand: the projected images as rows of the token table.
    by_hand = draw(LLM(args))
    rows = model.vision_projection(embedding[0, 2:6])
    table = torch.cat([by_hand.tok_embeddings.weight, rows])
    by_hand.tok_embeddings.weight = torch.nn.Parameter(table.detach())
    tokens = TOKENS.clone()
    tokens[0, 2:6] = torch.arange(90, 94)
    torch.testing.assert_close(found, logits(by_hand, tokens), rtol=0, atol=1e-12)


def test_inference_takes_no_gradients_and_computes_the_same(draw):
    model = draw(LLM(ARGS))
    found = model(TransformerInput(TOKENS, 0), inference=True).logits
    assert found.is_inference()
    assert torch.equal(found, logits(model, TOKENS).detach())


def test_bfloat16_gives_float32_logits_and_float64_gives_float64(draw):
    model = draw(LLM(ARGS))
    exact = logits(model, TOKENS)
    assert exact.dtype == torch.float64
    assert relative_l2(logits(model.float(), TOKENS).detach(), exact.detach()) < 1e-5
    assert logits(model.bfloat16(), TOKENS).dtype == torch.float32


def test_a_full_cache_is_an_error(draw):
    with pytest.raises(ValueError, match="holds 3 sequences of 24 tokens, but 2 sequences of 25"):
        logits(draw(LLM(ARGS)), TOKENS[:, :3], 22)
    with pytest.raises(ValueError, match="holds 3 sequences of 24 tokens, but 4 sequences of 23"):
        logits(draw(LLM(ARGS)), TOKENS.repeat(2, 1))
