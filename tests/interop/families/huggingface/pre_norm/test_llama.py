"""Llama against transformers: equal logits, bit-exact round trip, and every problem reported."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from decoder_family import DecoderFamily
from hf_case import Case, longrope, rope
from jax.sharding import AxisType, Mesh
from safetensors.torch import load_file, save_file
from tiny import relative_l2
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from jaxllm.config import with_fields
from jaxllm.interop import CheckpointError, inspect, load_pretrained, save_pretrained
from jaxllm.interop.families import Layout
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA
from jaxllm.interop.loading.checkpoint_dir import open_known_checkpoint
from jaxllm.models import build_abstract, with_scanned_layers
from jaxllm.params import named_parameters, parameter_shardings, stacked_layers, with_arrays

CASES = {
    "llama": Case("Llama"),
    "llama/tied-biases": Case(
        "Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}
    ),
    "llama/linear": Case("Llama", rope("linear", factor=3.3)),
    "llama/dynamic-below": Case("Llama", rope("dynamic", factor=4.0)),
    "llama/dynamic-beyond": Case(
        "Llama", {"max_position_embeddings": 128, **rope("dynamic", factor=4.0)}
    ),
    "llama/llama3": Case(
        "Llama",
        rope(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=64,
        ),
    ),
    "llama/yarn": Case("Llama", rope("yarn", factor=4.0, original_max_position_embeddings=128)),
    "llama/yarn-mscale": Case(
        "Llama",
        rope(
            "yarn",
            factor=8.0,
            original_max_position_embeddings=64,
            beta_fast=9.0,
            beta_slow=2.5,
            mscale=0.7,
            mscale_all_dim=1.4,
        ),
    ),
    "llama/yarn-attention-factor": Case(
        "Llama",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=100,
            truncate=False,
            attention_factor=0.8,
        ),
    ),
    "llama/longrope-below": Case("Llama", longrope(400, 8)),
    "llama/longrope-beyond": Case("Llama", longrope(64, 8, factor=3.0, attention_factor=1.2)),
}

TOLERANCE = 1e-5  # relative L2 of logits, float32
LENGTH = 320

# N != K, and sizes that differ from each other: a mix-up of axes changes a shape.
BASE = {
    "vocab_size": 96,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 56,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
CONFIGS = {
    "gqa": {},
    "mha": {"num_key_value_heads": 6},
    "wide-heads": {"num_attention_heads": 4, "head_dim": 24},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear": {"rope_parameters": LINEAR},
    "llama3": {"rope_parameters": LLAMA3, "eos_token_id": [1, 2]},
    "bfloat16": {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
}
MESHES = [(1, 4, 2), (8, 1, 1), (2, 2, 2)]


def random_llama(case: str) -> LlamaForCausalLM:
    """Builds a Llama with distinct random numbers in every tensor; no norm scale is one."""
    generator = torch.Generator().manual_seed(len(case))
    model = LlamaForCausalLM(LlamaConfig(**BASE | CONFIGS[case]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            is_scale = name.endswith("norm.weight")
            parameter.copy_(1 + 0.3 * drawn if is_scale else 0.15 * drawn)
    return model.eval().to(torch.bfloat16 if case == "bfloat16" else torch.float32)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a case as saved by transformers."""
    folders: dict[str, Path] = {}

    def save(case: str) -> Path:
        if case not in folders:
            folders[case] = tmp_path_factory.mktemp(case) / "llama"
            random_llama(case).save_pretrained(folders[case])
        return folders[case]

    return save


@pytest.fixture
def llama(saved, tmp_path) -> Path:
    """A copy of the first case, for tests that damage it."""
    return Path(shutil.copytree(saved("gqa"), tmp_path / "llama"))


def stored(folder: Path) -> dict[str, tuple]:
    """Returns dtype, shape and bits of every tensor in a folder."""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return {
        name: (tensor.dtype, tuple(tensor.shape), tensor.view(torch.uint8).numpy().tobytes())
        for name, tensor in tensors.items()
    }


def bits(model) -> dict[str, bytes]:
    return {
        name: np.asarray(v.get_value()).tobytes() for name, v in named_parameters(model).items()
    }


def mesh_of(shape: tuple[int, int, int]) -> Mesh:
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def edit_config(folder: Path, **changes: object) -> None:
    """Changes fields of a config.json; `...` removes one."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def problems(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder)
    return str(caught.value)


def draw_tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, BASE["vocab_size"], (2, LENGTH))


def their_logits(model: LlamaForCausalLM) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(draw_tokens())).logits.float().numpy()


logits_of = jax.jit(lambda model, tokens: model(tokens).logits)


@pytest.mark.cases(2)
@pytest.mark.parametrize("case", CONFIGS)
def test_logits_equal_transformers(case, saved):
    """Compared in float32, whatever dtype the weights were saved in."""
    folder = saved(case)
    theirs = LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    ours = load_pretrained(folder, dtype="float32")
    assert relative_l2(logits_of(ours, draw_tokens()), their_logits(theirs)) <= TOLERANCE


@pytest.mark.parametrize("case", CONFIGS)
def test_the_round_trip_is_bit_exact(case, saved, tmp_path):
    model = load_pretrained(saved(case))
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(saved(case))
    again, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], kind
    original = LlamaForCausalLM.from_pretrained(saved(case), attn_implementation="eager")
    assert again.dtype == original.dtype
    np.testing.assert_array_equal(their_logits(again), their_logits(original))
    assert load_pretrained(tmp_path / "out").config == model.config


@pytest.mark.parametrize("case", CONFIGS)
def test_the_exported_config_reads_the_same_in_transformers(case, saved, tmp_path):
    save_pretrained(load_pretrained(saved(case)), tmp_path / "out")
    ours, theirs = (AutoConfig.from_pretrained(f) for f in (tmp_path / "out", saved(case)))
    differ = {
        name: (ours.to_dict().get(name), value)
        for name, value in theirs.to_dict().items()
        if ours.to_dict().get(name) != value
    }
    differ.pop("_name_or_path", None)
    differ.pop("transformers_version", None)
    assert not differ


def test_shards_with_an_index_file_load_like_one_file(saved, tmp_path):
    source = tmp_path / "shards"
    LlamaForCausalLM.from_pretrained(saved("biases")).save_pretrained(source, max_shard_size="20KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    model = load_pretrained(source)
    assert bits(model) == bits(load_pretrained(saved("biases")))
    save_pretrained(model, tmp_path / "out", max_shard=30_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    assert stored(tmp_path / "out") == stored(saved("biases"))
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"] | info["mismatched_keys"]


@pytest.mark.parametrize("shape", MESHES)
def test_loading_and_exporting_are_bit_exact_on_any_mesh(shape, saved, tmp_path):
    alone, mesh = load_pretrained(saved("biases")), mesh_of(shape)
    model = load_pretrained(saved("biases"), mesh=mesh)
    assert bits(model) == bits(alone)
    placed = parameter_shardings(model, mesh)
    for name, variable in named_parameters(model).items():
        assert variable.get_value().sharding == placed[name], name
        whole = np.asarray(named_parameters(alone)[name].get_value())
        for shard in variable.get_value().addressable_shards:
            np.testing.assert_array_equal(shard.data, whole[shard.index], err_msg=name)
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(saved("biases"))
    with jax.set_mesh(mesh):
        sharded = logits_of(model, draw_tokens())
    assert relative_l2(sharded, logits_of(alone, draw_tokens())) <= TOLERANCE


def test_unscanned_layers_export_the_same_bits(saved, tmp_path):
    for case in ("biases", "tied"):
        model = with_scanned_layers(load_pretrained(saved(case)), False)
        assert "layers.2.attn.q_proj.kernel" in named_parameters(model)
        save_pretrained(model, tmp_path / case)
        assert stored(tmp_path / case) == stored(saved(case))


@pytest.mark.parametrize("case", ["biases", "wide-heads", "llama3"])
def test_the_layout_of_rotated_pairs_affects_only_memory(case, saved, tmp_path):
    """With adjacent rotated pairs, the bits in memory differ; the numbers and the file do not."""
    half = load_pretrained(saved(case))
    config = with_fields(half.config, {"rope.layout": "interleaved"})
    table = LLAMA.table(config, Layout())
    tensors = open_known_checkpoint(saved(case)).tensors
    arrays = {}
    for rule, sizes in table.bound(stacked_layers(half)):
        transfer = rule.importing(sizes)
        for name, index in transfer.target.names(sizes):
            shape = transfer.target.shape(sizes)
            out = np.empty(shape, np.float32)
            for piece in transfer.pieces(index, [(0, size) for size in shape]):
                transfer.copy(piece, tensors[piece.name].read(), out)
            arrays[name] = jax.numpy.asarray(out)
    interleaved = with_arrays(build_abstract(config), arrays)
    differ = {name for name, value in bits(half).items() if value != bits(interleaved)[name]}
    assert {name.split(".")[-2] for name in differ} == {"q_proj", "k_proj"}
    tokens = draw_tokens()
    assert relative_l2(logits_of(interleaved, tokens), logits_of(half, tokens)) <= TOLERANCE
    save_pretrained(interleaved, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(saved(case))


def as_v4(rope: dict) -> dict:
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    return {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling if scaling["rope_type"] != "default" else None,
        "rope_parameters": ...,
    }


@pytest.mark.parametrize(
    "rope",
    [{"rope_type": "default", "rope_theta": 500000.0}, LINEAR, LLAMA3],
    ids=lambda r: r["rope_type"],
)
def test_configs_of_transformers_4_and_5_read_the_same(rope, llama):
    edit_config(llama, rope_parameters=rope)
    modern = load_pretrained(llama).config
    edit_config(llama, **as_v4(rope), torch_dtype="float32", dtype=...)
    assert load_pretrained(llama).config == modern
    assert modern.rope.theta == rope["rope_theta"]
    assert (modern.rope.scaling is None) == (rope["rope_type"] == "default")
    assert AutoConfig.from_pretrained(llama).rope_parameters == rope


def test_configs_of_old_transformers_are_read(llama):
    """`type` for `rope_type`, as before transformers 4.43, and no theta before Llama 3."""
    edit_config(llama, rope_parameters=..., rope_scaling={"type": "linear", "factor": 4.0})
    config = load_pretrained(llama).config
    assert (config.rope.theta, config.rope.scaling.kind, config.rope.scaling.factor) == (
        10000.0,
        "linear",
        4.0,
    )


def test_defaults_equal_those_of_transformers(llama):
    """Keeps only the fields that differ from the defaults."""
    kept = {"architectures", "model_type", "num_key_value_heads"} | BASE.keys()
    config = json.loads((llama / "config.json").read_text())
    left = {name: value for name, value in config.items() if name in kept}
    (llama / "config.json").write_text(json.dumps(left))
    theirs = AutoConfig.from_pretrained(llama)
    ours = load_pretrained(llama).config
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"]
    assert ours.head_dim == theirs.head_dim
    assert ours.head.tied == theirs.tie_word_embeddings
    edit_config(llama, rms_norm_eps=...)
    assert load_pretrained(llama).config.norms.eps == AutoConfig.from_pretrained(llama).rms_norm_eps


HARMLESS = {
    "bos_token_id": 7,
    "eos_token_id": [3, 5],
    "pad_token_id": None,
    "use_cache": False,
    "_name_or_path": "somewhere/else",
    "pretraining_tp": 1,
    "architectures": ["LlamaForCausalLM"],
    "transformers_version": "4.40.0",
    "attention_dropout": 0.0,
}


def test_fields_that_do_not_affect_the_numbers_are_kept(llama, tmp_path):
    edit_config(llama, **HARMLESS)
    save_pretrained(load_pretrained(llama), tmp_path / "out")
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: exported.get(name, "lost") for name in HARMLESS} == HARMLESS
    assert exported["head_dim"] == 8
    assert exported["dtype"] == "float32"


PUBLISHED = {
    "SmolLM2": {
        "is_llama_config": True,
        "rope_interleaved": False,
        "transformers.js_config": {"kv_cache_dtype": {"fp16": "float16", "q4f16": "float16"}},
    },
    "transformers-4.48": {"_attn_implementation_autoset": True},
}


@pytest.mark.parametrize("fields", PUBLISHED.values(), ids=PUBLISHED)
def test_fields_of_published_models_are_read_and_kept(fields, llama, tmp_path):
    edit_config(llama, **fields)
    save_pretrained(load_pretrained(llama), tmp_path / "out")
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {name: exported.get(name, "lost") for name in fields} == fields


def test_a_field_of_another_library_is_as_little_read_as_in_transformers(llama):
    """nanotron's field for the other layout of rotated pairs."""
    before = load_pretrained(llama).config
    edit_config(llama, rope_interleaved=True)
    assert load_pretrained(llama).config == before
    assert inspect(llama).fields["rope_interleaved"] == "not used"


def test_a_field_that_may_be_misspelled_is_a_warning(llama, caplog):
    edit_config(llama, rope_tehta=20000.0)
    load_pretrained(llama)
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "rope_tehta is not used; did you mean 'rope_theta'?" in warning


COMPANIONS = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "README.md",
]


def test_the_tokenizer_is_copied_on_export(llama, tmp_path):
    for number, name in enumerate([*COMPANIONS, "optimizer.pt"]):
        (llama / name).write_bytes(bytes([number]) * 5)
    (llama / "tokenizers").mkdir()
    save_pretrained(load_pretrained(llama), tmp_path / "out")
    found = {file.name: file for file in (tmp_path / "out").iterdir()}
    assert found.keys() == {*COMPANIONS, "config.json", "model.safetensors"}
    for name in COMPANIONS:
        assert found[name].read_bytes() == (llama / name).read_bytes()


# What is wrong is named, all of it at once.


def test_every_problem_of_a_config_is_in_one_error(llama):
    edit_config(
        llama,
        is_causal=False,
        rms_norm_eps="small",
        hidden_act="mish",
        quantization_config={"quant_method": "gptq"},
        rope_parameters={"rope_type": "proportional", "rope_theta": 1e4, "factor": 32.0},
    )
    message = problems(llama)
    for said in (
        *("is_causal=False", "rms_norm_eps='small'", "float", "hidden_act='mish'", "silu"),
        *("quantization_config", "rope_type='proportional'", "yarn", "factor", "config.json"),
        *("--allow is_causal", "--allow hidden_act=silu", "--allow rope_parameters"),
        "bits=None is not one of",
    ):
        assert said in message, said
    assert str(llama) in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"num_atention_heads": 6, "num_attention_heads": ...}, "a misspelling of it"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_parameters": LINEAR | {"factor": 0.5}}, "factor=0.5"),
        ({"rope_parameters": LLAMA3 | {"low_freq_factor": ...}}, "low_freq_factor is missing"),
        ({"rope_parameters": LINEAR | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"num_key_value_heads": 4}, "num_kv_heads=4"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings='yes'"),
        ({"vocab_size": 96.0}, "vocab_size=96.0"),
        ({"num_hidden_layers": True}, "num_hidden_layers=True"),
    ],
    ids=str,
)
def test_several_problems_of_a_config_are_reported_together(changes, said, llama):
    """However the first problem is found, the second is reported as well."""
    rope = changes.get("rope_parameters", {})
    if rope:
        changes = changes | {"rope_parameters": {k: v for k, v in rope.items() if v is not ...}}
    edit_config(llama, **changes, is_causal=False)
    message = problems(llama)
    assert said in message
    assert "is_causal=False" in message


def test_problems_of_sizes_and_activation_are_reported_together(llama):
    edit_config(llama, hidden_act="mish", num_key_value_heads=4)
    message = problems(llama)
    assert "hidden_act='mish'" in message
    assert "num_kv_heads=4" in message


NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.2.mlp.down_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_tensor_is_named(name, llama):
    edit_tensors(llama, lambda tensors: tensors.pop(name))
    assert f"{name} is missing" in problems(llama)


@pytest.mark.parametrize("name", NAMES)
def test_a_renamed_tensor_is_reported_with_the_expected_name(name, llama):
    renamed = name.replace("weight", "wieght")
    edit_tensors(llama, lambda tensors: tensors.update({renamed: tensors.pop(name)}))
    message = problems(llama)
    assert f"{renamed} is unexpected; did you mean {name!r}" in message
    assert f"{name} is missing; did you mean {renamed!r}" in message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", ["transposed", "flattened", "one more row"])
def test_a_tensor_of_the_wrong_shape_is_reported_with_both_shapes(name, change, llama):
    def reshape(tensors: dict[str, torch.Tensor]) -> None:
        tensor = tensors[name]
        changed = {
            "transposed": tensor[None] if tensor.ndim == 1 else tensor.T,
            "flattened": tensor[:-1] if tensor.ndim == 1 else tensor.reshape(-1),
            "one more row": torch.cat([tensor, tensor[:1]]),
        }
        tensors[name] = changed[change].contiguous()

    edit_tensors(llama, reshape)
    found = load_file(llama / "model.safetensors")[name].shape
    line = next(line for line in problems(llama).splitlines() if name in line)
    assert any(str(size) in line for size in found)
    assert "in the file" in line


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.3.self_attn.q_proj.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.0.self_attn.q_norm.weight",
        "model.extra.weight",
    ],
)
def test_an_additional_tensor_is_named(name, llama):
    edit_tensors(llama, lambda tensors: tensors.update({name: torch.ones(3)}))
    assert f"{name} is unexpected" in problems(llama)


def test_every_problem_of_the_tensors_is_in_one_error(llama):
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[NAMES[0]]
        tensors[NAMES[2]] = torch.ones(3, 4)
        tensors["model.extra.weight"] = torch.ones(2)

    edit_tensors(llama, damage)
    message = problems(llama)
    assert all(name in message for name in (NAMES[0], NAMES[2], "model.extra.weight"))


def test_a_layer_with_another_dtype_cannot_be_stacked(llama):
    name = NAMES[2]
    edit_tensors(llama, lambda tensors: tensors.update({name: tensors[name].half()}))
    message = problems(llama)
    assert "layers.0:3.attn.k_proj.kernel" in message
    assert "float16 and float32" in message


def test_each_parameter_keeps_the_dtype_it_is_stored_in(saved, tmp_path):
    """Norms in float32 among bfloat16 weights, in both directions."""
    folder = Path(shutil.copytree(saved("bfloat16"), tmp_path / "mixed"))

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {name: t.float() for name, t in tensors.items() if "norm" in name}

    edit_tensors(folder, widen)
    model = load_pretrained(folder)
    assert model.config.numerics.param_dtype == model.config.numerics.dtype == "bfloat16"
    dtypes = {n: v.get_value().dtype.name for n, v in named_parameters(model).items()}
    for name, dtype in dtypes.items():
        assert dtype == ("float32" if name.endswith("scale") else "bfloat16"), name
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(folder)


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_that_is_stored_too_is_the_embedding_or_a_head_of_its_own(
    same, saved, tmp_path, caplog
):
    folder = Path(shutil.copytree(saved("tied"), tmp_path / "tied"))

    def add_head(tensors: dict[str, torch.Tensor]) -> None:
        head = tensors["model.embed_tokens.weight"].clone()
        head[5, 7] += 0 if same else 1
        tensors["lm_head.weight"] = head

    edit_tensors(folder, add_head)
    if same:
        assert bits(load_pretrained(folder)) == bits(load_pretrained(saved("tied")))
    else:
        model = load_pretrained(folder)
        assert not model.config.head.tied
        assert "the head differs from the embedding: loaded as untied" in caplog.text
        head, embedding = model.lm_head.kernel[...], model.embed.embedding[...]
        assert (np.asarray(embedding) != np.asarray(head).T).sum() == 1


def test_a_missing_untied_head_is_an_error(llama):
    """Without lm_head.weight, the embedding would fit but be wrong."""
    edit_tensors(llama, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lm_head.weight is missing" in problems(llama)


def test_old_buffers_are_ignored(llama, saved):
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    edit_tensors(llama, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert bits(load_pretrained(llama)) == bits(load_pretrained(saved("gqa")))


def test_folders_that_are_not_checkpoints_are_errors(tmp_path, llama):
    assert "not a folder" in problems(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "config.json is missing" in problems(tmp_path / "empty")
    edit_config(llama, model_type="llamma")
    assert "model_type 'llamma' is not supported; did you mean 'llama'?" in problems(llama)
    edit_config(llama, model_type="llama")
    (llama / "model.safetensors").unlink()
    assert "model.safetensors" in problems(llama)
    (llama / "config.json").write_text("{")
    assert "not valid JSON" in problems(llama)
    with pytest.raises(ValueError, match="fp8"):
        load_pretrained(llama, dtype="fp8")


def test_existing_folders_are_not_overwritten(saved, tmp_path):
    model = load_pretrained(saved("gqa"))
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path, tmp_path / "file"):
        with pytest.raises(CheckpointError, match="not an empty folder"):
            save_pretrained(model, target)
    with pytest.raises(CheckpointError, match="gguf"):
        save_pretrained(model, tmp_path / "out", format="gguf")
    with pytest.raises(CheckpointError, match="model_parallel=2"):
        save_pretrained(model, tmp_path / "out", model_parallel=2)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_model_without_an_origin_is_written_as_hugging_face(saved, tmp_path):
    """A model trained from scratch has no origin; transformers computes the same from it."""
    loaded = load_pretrained(saved("wide-heads"))
    arrays = {name: v.get_value() for name, v in named_parameters(loaded).items()}
    model = with_arrays(build_abstract(loaded.config), arrays)
    assert model.origin is None
    save_pretrained(model, tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager")
    assert relative_l2(logits_of(model, draw_tokens()), their_logits(theirs)) <= TOLERANCE


def test_the_comparison_detects_wrong_weights():
    """Swapping two tensors of equal shape, or scaling a norm, moves the logits out of tolerance."""
    model = random_llama("gqa")
    logits = their_logits(model)
    layer = model.model.layers[1]
    with torch.no_grad():
        layer.input_layernorm.weight *= 1 + 1e-3
    assert relative_l2(their_logits(model), logits) > 10 * TOLERANCE
    assert math.isfinite(relative_l2(their_logits(model), logits))


class TestLlama(DecoderFamily):
    cases = CASES
