"""Every state dict format gives the same model; merged shards equal the original tensors."""

import dataclasses
import io

import pytest
import torch
from torch import Tensor

from jaxllm.interop.reference.llm.arguments import MoEArgs, Size, VisionArgs
from jaxllm.interop.reference.llm.checkpoint import merge_shards
from jaxllm.interop.reference.llm.model import LLM, ModelArgs

ARGS = ModelArgs(
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=24,
    multiple_of=4,
    moe_args=MoEArgs(num_experts=3, interleave_moe_layer_step=2),  # layer 0 dense, layer 1 experts
    vision_args=VisionArgs(
        image_size=Size(height=4, width=4),
        patch_size=Size(height=2, width=2),
        dim=16,
        n_layers=1,
        n_heads=2,
        mlp_ratio=2.0,
        output_dim=8,
        pixel_shuffle_ratio=0.5,
    ),
    batch_size=1,
    max_seq_len=8,
)
ATTENTION, DENSE, MIXTURE = (
    "layers.0.attention.",
    "layers.0.feed_forward.",
    "layers.1.feed_forward.",
)


def fused(state: dict, parts: list[str], name: str) -> dict:
    """Concatenates the rows of these tensors into one fused tensor."""
    rest = {key: value for key, value in state.items() if key not in parts}
    return rest | {name: torch.cat([state[part] for part in parts])}


def renamed(state: dict, names: dict[str, str]) -> dict:
    assert names.keys() <= state.keys()
    return {names.get(key, key): value for key, value in state.items()}


def released(state: dict) -> dict:
    """Converts the experts of layer 1 to the format that Llama 4 is released in."""
    names = {
        "experts.w1": "experts.moe_w_in_eD_F",
        "experts.w2": "experts.moe_w_out_eF_D",
        "experts.w3": "experts.moe_w_swiglu_eD_F",
        "shared_expert.w1.weight": "w_in_shared_FD.weight",
        "shared_expert.w3.weight": "w_swiglu_FD.weight",
        "shared_expert.w2.weight": "w_out_shared_DF.weight",
    }
    state = renamed(state, {MIXTURE + old: MIXTURE + new for old, new in names.items()})
    for key in [key for key in state if ".moe_w" in key]:
        state[key] = state[key].flatten(0, 1)
    return state


WQKV = [f"{ATTENTION}w{x}.weight" for x in "qkv"]
FC1 = [f"{DENSE}w_gate.weight", f"{DENSE}w_value.weight"]
NORMS = ("layers.0.attention_norm.weight", "layers.0.ffn_norm.weight")
NAMINGS = {
    "wqkv": lambda s: fused(s, WQKV, ATTENTION + "wqkv.weight"),
    "norm with wqkv": lambda s: renamed(s, {NORMS[0]: ATTENTION + "wqkv.layer_norm_weight"}),
    "norm of attention": lambda s: renamed(s, {NORMS[0]: ATTENTION + "norm.weight"}),
    "norm with mlp": lambda s: renamed(s, {NORMS[1]: DENSE + "mlp.layer_norm_weight"}),
    "norm of feed_forward": lambda s: renamed(s, {NORMS[1]: DENSE + "norm.weight"}),
    "fc1 and fc2": lambda s: renamed(
        fused(s, FC1, DENSE + "mlp.fc1_weight"), {DENSE + "w_out.weight": DENSE + "mlp.fc2_weight"}
    ),
    "Meta's numbers": lambda s: renamed(
        s,
        {
            f"{DENSE}{ours}.weight": f"{DENSE}{theirs}.weight"
            for ours, theirs in {"w_gate": "w1", "w_out": "w2", "w_value": "w3"}.items()
        },
    ),
    "lm_head": lambda s: renamed(s, {"output.weight": "lm_head.weight"}),
    "experts": released,
    "derived": lambda s: (
        s
        | {
            "rope.freqs": torch.ones(4),
            "output._extra_state": io.BytesIO(),
            ATTENTION + "wo._extra_state": io.BytesIO(),
            DENSE + "mlp._extra_state": io.BytesIO(),
            MIXTURE + "running_gate_stats_3E": torch.ones(3, 3),
            MIXTURE + "global_gate_stats_3E": torch.ones(3, 3),
            MIXTURE + "expert_activation_DE": torch.ones(32, 3),
        }
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_state_dict_format_gives_the_same_model(draw, naming):
    state = draw(LLM(ARGS)).state_dict()
    model = LLM(ARGS).double()
    model.load_state_dict(NAMINGS[naming](dict(state)))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_single_block_loads_every_format(draw):
    block = draw(LLM(ARGS)).layers[0]
    state = {name.removeprefix("layers.0."): x for name, x in block.state_dict().items()}
    state["attention.norm.weight"] = state.pop("attention_norm.weight")
    state["attention.wo._extra_state"] = io.BytesIO()
    LLM(ARGS).double().layers[0].load_state_dict(state)


@pytest.mark.parametrize("alias", ["lm_head.weight", ATTENTION + "wqkv.weight"])
def test_two_names_of_one_tensor_are_an_error(draw, alias):
    state = draw(LLM(ARGS)).state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        LLM(ARGS).double().load_state_dict(dict(state) | {alias: torch.ones(64, 32)})


def test_a_fused_tensor_of_the_wrong_size_is_an_error():
    state = {ATTENTION + "wqkv.weight": torch.ones(65, 32)}
    with pytest.raises(ValueError, match=r"wqkv.weight has 65 rows, not 32 \+ 16 \+ 16"):
        LLM(ARGS).load_state_dict(state)


# ---- model-parallel shards


def cut(name: str, x: Tensor, T: int) -> list[Tensor]:
    """Splits a tensor as fairscale does over T shards; written independently of the code tested."""
    last = ("wo.weight", "w2.weight", "w_out.weight", "fc2_weight", "_shared_DF.weight")
    last += ("moe_w_in_eD_F", "moe_w_swiglu_eD_F", "c_proj.weight")
    first = ("tok_embeddings.weight", "output.weight", "w1.weight", "w3.weight", "_FD.weight")
    first += ("w_gate.weight", "w_value.weight", "vision_projection.weight", "_linear.weight")
    first += ("c_fc.weight", "c_fc.bias", *(f"w{p}.{q}" for p in "qkv" for q in ("weight", "bias")))
    if name.endswith("moe_w_out_eF_D"):
        return [part.flatten(0, 1) for part in x.unflatten(0, (3, -1)).chunk(T, 1)]
    if name.endswith(("wqkv.weight", "fc1_weight")):
        sizes = [32, 16, 16] if "wqkv" in name else [len(x) // 2] * 2
        parts = zip(*(segment.chunk(T) for segment in x.split(sizes)), strict=True)
        return [torch.cat(part) for part in parts]
    if name.endswith(last):
        return list(x.chunk(T, -1))
    return list(x.chunk(T)) if name.endswith(first) else [x] * T


@pytest.mark.parametrize("T", [1, 2])
@pytest.mark.parametrize("naming", ["wqkv", "fc1 and fc2", "Meta's numbers", "experts"])
def test_merged_shards_equal_the_original(draw, naming, T):
    state = dict(draw(LLM(ARGS)).state_dict())
    state = NAMINGS[naming](state if naming == "experts" else released(state))
    cuts = {name: cut(name, x, T) for name, x in state.items()}
    shards = [{name: parts[t] for name, parts in cuts.items()} for t in range(T)]
    shards[0]["layers.0.attention.wo._extra_state"] = io.BytesIO()
    merged = merge_shards(shards, ARGS)
    assert merged.keys() == state.keys()
    assert all(torch.equal(merged[name], x) for name, x in state.items())
    if T > 1:
        assert sum(len({id(part) for part in parts}) > 1 for parts in cuts.values()) > 20
    LLM(ARGS).double().load_state_dict(merged)


def test_llama2_splits_the_embedding_along_its_width():
    args = dataclasses.replace(ARGS, moe_args=None, vision_args=None)
    table = torch.randn(24, 32)
    shards = [{"tok_embeddings.weight": part} for part in table.chunk(2, -1)]
    assert torch.equal(merge_shards(shards, args)["tok_embeddings.weight"], table)


@pytest.mark.parametrize("name", ["wk", "wqkv"])
def test_heads_held_by_several_shards_are_merged_once(name):
    """Four shards hold two key/value heads: each head is in two shards."""
    q, k, v = torch.randn(32, 32), torch.randn(16, 32), torch.randn(16, 32)
    heads = [(q.chunk(4)[t], k.chunk(2)[t // 2], v.chunk(2)[t // 2]) for t in range(4)]
    key = f"layers.0.attention.{name}.weight"
    if name == "wk":
        shards, expected = [{key: k_t} for _, k_t, _ in heads], k
    else:
        shards, expected = [{key: torch.cat(head)} for head in heads], torch.cat([q, k, v])
    assert torch.equal(merge_shards(shards, ARGS)[key], expected)
    shards[1][key] = shards[1][key] + 1
    with pytest.raises(ValueError, match=f"{name}.weight: the copies in shards 0 and 1 differ"):
        merge_shards(shards, ARGS)


def test_inconsistent_shards_are_errors():
    norm = torch.ones(32)
    with pytest.raises(ValueError, match=r"missing from some of the 2 shards: \['norm.weight'\]"):
        merge_shards([{"norm.weight": norm}, {}], ARGS)
    with pytest.raises(ValueError, match=r"norm.weight: the copies in shards 0 and 1 differ"):
        merge_shards([{"norm.weight": norm}, {"norm.weight": 2 * norm}], ARGS)
    experts = {"layers.1.feed_forward.experts.moe_w_out_eF_D": torch.ones(6, 32)}
    with pytest.raises(ValueError, match="the tensor holds experts, but moe_args=None"):
        merge_shards([experts], dataclasses.replace(ARGS, moe_args=None))
