"""`LLM` and Meta's Llama 4 in every format that their load hooks accept, whole and sharded."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from hf_cases import randomize
from tiers import examples
from tiny import relative_l2

from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained
from jaxllm.interop.families import FAMILIES, Fields
from jaxllm.interop.reference.llm.checkpoint import merge_shards
from jaxllm.interop.reference.llm.model import LLM, MaskedEmbedding, ModelArgs, TransformerInput
from jaxllm.layers.vision import MaskedEmbedding as OurMaskedEmbedding
from jaxllm.params import named_parameters

TOLERANCE = 1e-5  # relative L2, float32
# Six shards divide all that is cut but the two key/value heads, which three of them then share.
CONFIG = {
    "dim": 48,
    "n_layers": 4,
    "n_heads": 6,
    "n_kv_heads": 2,
    "vocab_size": 90,
    "multiple_of": 12,
    "ffn_dim_multiplier": 1.3,
    "ffn_exp": 2.0,
    "norm_eps": 1e-5,
    "attention_chunk_size": 50,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
    "nope_layer_interval": 4,
    "use_qk_norm": True,
    "attn_temperature_tuning": True,
    "floor_scale": 40.0,
    "moe_args": {"num_experts": 5, "top_k": 2, "interleave_moe_layer_step": 2},
    "vision_args": {
        "image_size": {"height": 8, "width": 8},
        "patch_size": {"height": 2, "width": 2},
        "dim": 48,
        "n_layers": 2,
        "n_heads": 6,
        "mlp_ratio": 1.5,
        "output_dim": 24,
        "pixel_shuffle_ratio": 0.5,
    },
}
LENGTH = 320
SHARDS = [1, 2, 6]
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def original() -> LLM:
    return randomize(LLM(ModelArgs.from_json({**CONFIG, "max_seq_len": LENGTH, "batch_size": 2})))


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 90, (2, LENGTH))


@pytest.fixture(scope="module")
def expected(original, tokens) -> np.ndarray:
    return their_logits(original, tokens)


def their_logits(original, tokens, image_embedding=None) -> np.ndarray:
    given = TransformerInput(torch.tensor(tokens), 0, image_embedding)
    return original(given, inference=True).logits.numpy()


logits_of = jax.jit(lambda model, tokens: model(tokens).logits)


# How fairscale cuts what the modules of `LLM` hold: along this dimension; all else is copied.
CUTS = {
    r"(tok_embeddings|output|vision_projection|conv1\._linear)\.weight": 0,
    r"attention\.wq\.weight": 0,
    r"attention\.wo\.weight": 1,
    r"feed_forward\.(w_gate|w_value)\.weight": 0,
    r"feed_forward\.w_out\.weight": 1,
    r"experts\.(w1|w3)": 2,
    r"experts\.w2": 1,
    r"shared_expert\.(w1|w3)\.weight": 0,
    r"shared_expert\.w2\.weight": 1,
    r"attn\.w[qkv]\.(weight|bias)": 0,
    r"attn\.wo\.weight": 1,
    r"mlp\.c_fc\.(weight|bias)": 0,
    r"mlp\.c_proj\.weight": 1,
}


def shard(state: State, rank: int, shards: int) -> State:
    """Returns the tensors of one model-parallel shard."""

    def mine(name: str, tensor: torch.Tensor) -> torch.Tensor:
        cut = next((CUTS[key] for key in CUTS if re.search(rf"(^|\.){key}$", name)), None)
        if re.search(r"attention\.w[kv]\.", name):
            parts = min(shards, CONFIG["n_kv_heads"])
            return tensor.chunk(parts)[rank * parts // shards]
        return tensor if cut is None else tensor.chunk(shards, cut)[rank]

    return {name: mine(name, tensor).clone() for name, tensor in state.items()}


# The formats; each one renames the tensors of a shard.


def renamed(state: State, **names: str) -> State:
    """Replaces parts of tensor names; `__` stands for a dot."""
    table = {old.replace("__", "."): new for old, new in names.items()}
    old = re.compile(rf"(^|(?<=\.))({'|'.join(map(re.escape, table))})$")
    return {old.sub(lambda m: table[m[0]], name): tensor for name, tensor in state.items()}


def joined(state: State, fused: str, *parts: str) -> State:
    """Concatenates the rows of these parts, wherever they occur, into one tensor."""
    first = re.compile(rf"(.*)\b{re.escape(parts[0])}$")
    for name in list(state):
        if match := first.fullmatch(name):
            rows = [state.pop(match[1] + part) for part in parts]
            state[match[1] + fused] = torch.cat(rows)
    return state


def with_fused_attention(state: State) -> State:
    parts = (f"attention.w{letter}.weight" for letter in "qkv")
    return joined(state, "attention.wqkv.weight", *parts)


META = {"w_gate__weight": "w1.weight", "w_value__weight": "w3.weight", "w_out__weight": "w2.weight"}


def of_modules(state: State) -> State:
    return renamed(state, **META)


def released(state: State) -> State:
    """The released format: dense layers and layers with experts name their norms differently."""
    moe = {name.split(".")[1] for name in state if name.endswith("router_DE")}
    state = with_fused_attention(state)
    state = joined(state, "mlp.fc1_weight", "w_gate.weight", "w_value.weight")
    changed = {}
    for name, tensor in state.items():
        norm = "norm.weight" if name.split(".")[1] in moe else "mlp.layer_norm_weight"
        stacked = tensor.flatten(0, 1) if "experts.w" in name else tensor
        changed[name.replace("ffn_norm.weight", f"feed_forward.{norm}")] = stacked
    changed["rope.freqs"] = torch.ones(4)
    changed["layers.1.attention.wqkv._extra_state"] = torch.zeros(0)
    changed["layers.1.feed_forward.running_gate_stats_3E"] = torch.zeros(3, 5)
    return renamed(
        changed,
        attention_norm__weight="attention.wqkv.layer_norm_weight",
        w_out__weight="mlp.fc2_weight",
        experts__w1="experts.moe_w_in_eD_F",
        experts__w2="experts.moe_w_out_eF_D",
        experts__w3="experts.moe_w_swiglu_eD_F",
        shared_expert__w1__weight="w_in_shared_FD.weight",
        shared_expert__w3__weight="w_swiglu_FD.weight",
        shared_expert__w2__weight="w_out_shared_DF.weight",
    )


NAMINGS: dict[str, Callable[[State], State]] = {
    "modules": of_modules,
    "released": released,
    "own names": lambda state: state,
    "wqkv": with_fused_attention,
    "fc1": lambda state: renamed(
        joined(state, "mlp.fc1_weight", "w_gate.weight", "w_value.weight"),
        w_out__weight="mlp.fc2_weight",
    ),
    "fc2 alone": lambda state: renamed(state, w_out__weight="mlp.fc2_weight"),
    "attention.norm": lambda state: renamed(state, attention_norm__weight="attention.norm.weight"),
    "wqkv.layer_norm_weight": lambda state: renamed(
        state, attention_norm__weight="attention.wqkv.layer_norm_weight"
    ),
    "feed_forward.norm": lambda state: renamed(state, ffn_norm__weight="feed_forward.norm.weight"),
    "mlp.layer_norm_weight": lambda state: renamed(
        state, ffn_norm__weight="feed_forward.mlp.layer_norm_weight"
    ),
    "lm_head": lambda state: renamed(state, output__weight="lm_head.weight"),
}
DROPPED = ("rope.freqs", "_extra_state", "gate_stats_3E")


def write_meta(folder: Path, original: LLM, shards: int, naming: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(CONFIG))
    for rank in range(shards):
        state = NAMINGS[naming](shard(original.state_dict(), rank, shards))
        torch.save(state, folder / f"consolidated.{rank:02}.pth")
    return folder


def write_llm(folder: Path, original: LLM, naming: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llm", **CONFIG}))
    torch.save(NAMINGS[naming](dict(original.state_dict())), folder / "state_dict.pth")
    return folder


def stored(folder: Path) -> dict[tuple[str, str], tuple]:
    """Returns dtype, shape and bits of every tensor; only the shape of derived ones."""
    tensors = {}
    for file in sorted(folder.glob("*.pth")):
        for name, tensor in torch.load(file, weights_only=True).items():
            data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
            is_derived = name.endswith(DROPPED)
            tensors[file.name, name] = tensor.dtype, tensor.shape, b"" if is_derived else data
    return tensors


def says(written: object, given: object) -> bool:
    """Whether all given fields are in the written ones."""
    if not isinstance(given, dict):
        return written == given
    return all(name in written and says(written[name], given[name]) for name in given)


def without_statistics(tensors: dict) -> dict:
    return {key: value for key, value in tensors.items() if not key[1].endswith(DROPPED[1:])}


@pytest.mark.cases(1, exhaustive=4)
@pytest.mark.parametrize("naming", examples(NAMINGS, *list(NAMINGS)[::4]))
def test_an_llm_is_read_and_written_in_every_format(naming, original, tokens, expected, tmp_path):
    folder = write_llm(tmp_path / "in", original, naming)
    model = load_pretrained(folder)
    assert relative_l2(logits_of(model, tokens), expected) <= TOLERANCE
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == without_statistics(stored(folder))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert says(written, json.loads((folder / "config.json").read_text()))


@pytest.mark.cases(2, exhaustive=4)
@pytest.mark.parametrize("shards", examples(SHARDS, 2))
@pytest.mark.parametrize(
    "naming", examples(["modules", "released", "fc1", "mlp.layer_norm_weight"], "released", "fc1")
)
def test_shards_are_read_and_written_in_every_format(
    naming, shards, original, tokens, expected, tmp_path
):
    folder = write_meta(tmp_path / "in", original, shards, naming)
    model = load_pretrained(folder)
    assert relative_l2(logits_of(model, tokens), expected) <= TOLERANCE
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == without_statistics(stored(folder))
    written = json.loads((tmp_path / "out" / "params.json").read_text())
    assert says(written, CONFIG)


@pytest.mark.parametrize("shards", SHARDS)
def test_the_shards_of_these_tests_load_in_the_original(shards, original, tokens, expected):
    states = [released(shard(original.state_dict(), rank, shards)) for rank in range(shards)]
    for state in states:
        for name in [name for name in state if name.endswith("gate_stats_3E")]:
            del state[name]
    merged = LLM(original.args)
    merged.load_state_dict(merge_shards(states, original.args))
    np.testing.assert_array_equal(their_logits(merged, tokens), expected)


@pytest.mark.cases(1)
@pytest.mark.parametrize("naming", ["modules", "released"])
def test_resharding_is_bit_exact(naming, original, tmp_path):
    model = load_pretrained(write_meta(tmp_path / "two", original, 2, naming))
    for shards in SHARDS:
        save_pretrained(model, tmp_path / f"out{shards}", model_parallel=shards)
        direct = write_meta(tmp_path / f"direct{shards}", original, shards, naming)
        assert stored(tmp_path / f"out{shards}") == without_statistics(stored(direct))


def test_a_differing_copy_of_a_key_value_head_is_reported(original, tmp_path):
    folder = write_meta(tmp_path / "six", original, 6, "released")
    file = folder / "consolidated.04.pth"
    tensors = torch.load(file, weights_only=True)
    tensors["layers.2.attention.wqkv.weight"][-3, 5] += 1e-3
    torch.save(tensors, file)
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder)
    assert "04/layers.2.attention.wqkv.weight" in str(caught.value)
    assert "03/layers.2.attention.wqkv.weight" in str(caught.value)


@pytest.mark.parametrize("chosen", ["meta", "llm"])
def test_the_original_computes_the_same_from_another_format(
    chosen, original, tokens, expected, tmp_path
):
    """Also without the original fields, which are then written anew."""
    model = load_pretrained(write_llm(tmp_path / "in", original, "own names"))
    model.origin = None
    save_pretrained(model, tmp_path / "out", format=chosen)
    again = load_pretrained(tmp_path / "out")
    config = dataclasses.replace(again.config, max_len=model.config.max_len)
    assert config == model.config
    (config_file,) = (tmp_path / "out").glob("*.json")
    (tensors,) = (tmp_path / "out").glob("*.pth")
    fields = json.loads(config_file.read_text())
    fields.pop("model_type", None)
    fields.pop("max_seq_len", None)
    rebuilt = LLM(ModelArgs.from_json({**fields, "max_seq_len": LENGTH}))
    rebuilt.load_state_dict(torch.load(tensors, weights_only=True))
    np.testing.assert_array_equal(their_logits(rebuilt, tokens), expected)


@pytest.mark.cases(3)
@pytest.mark.parametrize("mlp_dim", [111, 96, 40])
@pytest.mark.parametrize("expert_dim", [39, 111, 150])
def test_any_widths_can_be_written(mlp_dim, expert_dim, original, tmp_path):
    """The arguments give widths indirectly, as a multiple of a fraction of another width."""
    model = load_pretrained(write_llm(tmp_path / "in", original, "own names"))
    experts = dataclasses.replace(
        model.config.experts, mlp_dim=expert_dim, shared_mlp_dim=expert_dim
    )
    config = dataclasses.replace(model.config, mlp_dim=mlp_dim, experts=experts)
    family = next(family for family in FAMILIES if family.name == "llm")
    for base in ({}, CONFIG):
        fields = Fields(json.loads(json.dumps(family.write_config(config, base))))
        values, _ = family.read_config(fields, {})
        assert not fields.finish()
        assert (values["mlp_dim"], values["experts"]) == (mlp_dim, experts)


def test_images_replace_tokens(original, tokens, tmp_path):
    """The encoder, the projection and the merge, against the reference."""
    images = np.random.default_rng(3).standard_normal((3, 3, 8, 8)).astype(np.float32)
    places = np.zeros((2, LENGTH), bool)
    places[0, 7:11] = places[0, 60:64] = places[1, 100:104] = True
    mask = torch.tensor(places)[..., None]
    with torch.no_grad():
        embedding = original.vision_embeddings(
            [[torch.tensor(images[:2])], [torch.tensor(images[2:])]], mask
        )
        expected = their_logits(original, tokens, MaskedEmbedding(embedding, mask))
    model = load_pretrained(write_meta(tmp_path / "in", original, 2, "released"))
    assert model.config.vision.image_token is None  # the token is beyond this small vocabulary
    rows = jax.jit(lambda model, images: model.vision(images))(model, images)
    assert relative_l2(rows.reshape(-1, 24), embedding[mask[..., 0]].numpy()) <= TOLERANCE
    given = OurMaskedEmbedding(embedding.numpy(), places)
    found = jax.jit(lambda model, *args: model(args[0], image_embedding=args[1]).logits)(
        model, tokens, given
    )
    assert relative_l2(found, expected) <= TOLERANCE


def test_arrays_do_not_depend_on_the_format(original, tmp_path):
    """The arrays of a model do not depend on the format of the checkpoint."""
    models = [
        load_pretrained(write_llm(tmp_path / "llm", original, "released")),
        load_pretrained(write_meta(tmp_path / "meta", original, 6, "fc1")),
    ]
    ours, theirs = (
        {name: np.asarray(v.get_value()).tobytes() for name, v in named_parameters(m).items()}
        for m in models
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"moe_args": {"num_experts": 5, "top_k": 2, "capacity": 1.0}}, "moe_args: capacity=1.0"),
        ({"moe_args": {"top_k": 2}}, "moe_args: num_experts is missing"),
        ({"head_dim": 16}, "head_dim=16 is not supported, only None or 8"),
        ({"floor_scale": 0}, "floor_scale=0.0"),
        ({"nope_layer_interval": 0}, "nope_layer_interval=0"),
        ({"vision_args": {**CONFIG["vision_args"], "dim": 40}}, "embed_dim=40"),
        (
            {"vision_args": {**CONFIG["vision_args"], "image_size": {"height": 8, "width": 16}}},
            "vision_args: image_size: height=8, width=16",
        ),
        (  # resizing the positions of image patches is not documented
            {"vision_args": {**CONFIG["vision_args"], "image_size": {"height": 16, "width": 16}}},
            "positional_embedding_vlm",
        ),
        ({"attention_chunk": 8}, "did you mean 'attention_chunk_size'"),
    ],
    ids=str,
)
def test_problems_of_the_arguments_are_reported(changes, said, original, tmp_path):
    folder = write_llm(tmp_path / "in", original, "own names")
    (folder / "config.json").write_text(json.dumps({"model_type": "llm", **CONFIG, **changes}))
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder)
    assert said in str(caught.value)


def test_shards_that_do_not_divide_are_refused_with_all_sizes(original, tmp_path):
    model = load_pretrained(write_llm(tmp_path / "in", original, "own names"))
    wrong = r"4 model-parallel shards .*num_heads=6, vocab_size=90, vision.num_heads=6"
    with pytest.raises(CheckpointError, match=wrong):
        save_pretrained(model, tmp_path / "out", format="meta", model_parallel=4)
