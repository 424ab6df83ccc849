"""Meta's Llama in model-parallel shards: loading, logits, export and resharding."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from tiny import random_model, relative_l2
from transformers import AutoModelForCausalLM

from jaxllm.config import HeadConfig
from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained
from jaxllm.interop.families.meta.params_json import mlp_width
from jaxllm.params import named_parameters

TOLERANCE = 1e-5  # relative L2 of logits, float32
LENGTH = 320


@dataclasses.dataclass(frozen=True)
class Case:
    """A `params.json`, and the axis along which its release split the embedding."""

    params: dict
    vocab_size: int = 96
    mlp_dim: int = 0
    split_width: bool = False
    dtype: torch.dtype = torch.float32


CASES = {
    "llama2": Case(
        {
            "dim": 32,
            "n_heads": 4,
            "n_layers": 3,
            "multiple_of": 24,
            "norm_eps": 1e-6,
            "vocab_size": -1,
        },
        mlp_dim=96,  # 4 * 32 -> 85 -> 96
        split_width=True,
    ),
    "llama3": Case(
        {
            "dim": 64,
            "n_heads": 8,
            "n_kv_heads": 4,
            "n_layers": 2,
            "multiple_of": 16,
            "ffn_dim_multiplier": 1.3,
            "norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "vocab_size": 96,
        },
        mlp_dim=224,  # 4 * 64 -> 170 -> 221 -> 224
    ),
    "llama31": Case(
        {
            "dim": 64,
            "n_heads": 4,
            "n_kv_heads": 4,
            "n_layers": 2,
            "multiple_of": 1024,
            "ffn_dim_multiplier": 1.3,
            "norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "use_scaled_rope": True,
            "vocab_size": 96,
        },
        mlp_dim=1024,
        dtype=torch.bfloat16,
    ),
}
SHARDS = [1, 2, 4]

# The dimension along which fairscale cuts a weight; the norms are copied to every shard.
CUT = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0, "output": 0}


def random_state(case: Case) -> dict[str, torch.Tensor]:
    """The tensors of the unsharded model, with distinct random numbers in each."""
    params, V, F = case.params, case.vocab_size, case.mlp_dim
    D, N = params["dim"], params["n_heads"]
    kv_width = params.get("n_kv_heads", N) * (D // N)
    shapes = {"tok_embeddings.weight": (V, D), "norm.weight": (D,), "output.weight": (V, D)}
    for i in range(params["n_layers"]):
        shapes |= {
            f"layers.{i}.attention.wq.weight": (D, D),
            f"layers.{i}.attention.wk.weight": (kv_width, D),
            f"layers.{i}.attention.wv.weight": (kv_width, D),
            f"layers.{i}.attention.wo.weight": (D, D),
            f"layers.{i}.feed_forward.w1.weight": (F, D),
            f"layers.{i}.feed_forward.w2.weight": (D, F),
            f"layers.{i}.feed_forward.w3.weight": (F, D),
            f"layers.{i}.attention_norm.weight": (D,),
            f"layers.{i}.ffn_norm.weight": (D,),
        }
    generator = torch.Generator().manual_seed(D + V)
    state = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        state[name] = 1 + 0.3 * drawn if len(shape) == 1 else 0.15 * drawn
    return {name: tensor.to(case.dtype) for name, tensor in state.items()}


def shard_of(case: Case, state: dict[str, torch.Tensor], rank: int, shards: int) -> dict:
    """Returns the tensors that rank `rank` of `shards` stores."""
    mine = {}
    for name, tensor in state.items():
        if name == "tok_embeddings.weight":
            cut = 1 if case.split_width else 0
        else:
            cut = CUT.get(name.split(".")[-2])
        whole = cut is None
        mine[name] = tensor.clone() if whole else tensor.chunk(shards, cut)[rank].clone()
    head_dim = case.params["dim"] // case.params["n_heads"]
    mine["rope.freqs"] = 1 / 10000 ** (torch.arange(0, head_dim, 2) / head_dim)
    return mine


def write(folder: Path, case: Case, shards: int) -> Path:
    """A folder as Meta releases it."""
    folder.mkdir(parents=True)
    (folder / "params.json").write_text(json.dumps(case.params))
    state = random_state(case)
    for rank in range(shards):
        torch.save(shard_of(case, state, rank, shards), folder / f"consolidated.{rank:02}.pth")
    return folder


def stored(folder: Path) -> dict[str, dict[str, tuple]]:
    """Maps file and tensor to dtype, shape and bits; without the derived `rope.freqs`."""
    return {
        file.name: {
            name: (t.dtype, tuple(t.shape), t.contiguous().view(torch.uint8).numpy().tobytes())
            for name, t in torch.load(file, weights_only=True).items()
            if name != "rope.freqs"
        }
        for file in sorted(folder.glob("*.pth"))
    }


def bits(model) -> dict[str, bytes]:
    return {n: np.asarray(v.get_value()).tobytes() for n, v in named_parameters(model).items()}


def edit_shard(folder: Path, rank: int, change: Callable[[dict], object]) -> None:
    file = folder / f"consolidated.{rank:02}.pth"
    tensors = torch.load(file, weights_only=True)
    change(tensors)
    torch.save(tensors, file)


def problems(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder)
    return str(caught.value)


# Meta's forward pass in plain PyTorch: RoPE on complex numbers, pairs of neighbors.


def rotations(case: Case, length: int) -> torch.Tensor:
    """Returns exp(i position frequency), (T, H/2), with the scaling of Llama 3.1."""
    params = case.params
    head_dim = params["dim"] // params["n_heads"]
    exponents = torch.arange(0, head_dim, 2)[: head_dim // 2].float() / head_dim
    frequencies = 1.0 / (params.get("rope_theta", 10000.0) ** exponents)
    if params.get("use_scaled_rope"):
        scaled = []
        for frequency in frequencies.tolist():
            wavelength = 2 * math.pi / frequency
            smooth = (8192 / wavelength - 1) / (4 - 1)
            if wavelength < 8192 / 4:
                scaled.append(frequency)
            elif wavelength > 8192 / 1:
                scaled.append(frequency / 8)
            else:
                scaled.append((1 - smooth) * frequency / 8 + smooth * frequency)
        frequencies = torch.tensor(scaled)
    angles = torch.outer(torch.arange(length).float(), frequencies)
    return torch.polar(torch.ones_like(angles), angles)


def reference_logits(case: Case, tokens: torch.Tensor) -> torch.Tensor:
    """In float32."""
    state = {name: tensor.float() for name, tensor in random_state(case).items()}
    params = case.params
    heads, eps = params["n_heads"], params["norm_eps"]
    kv_heads = params.get("n_kv_heads", heads)
    B, T = tokens.shape
    turns = rotations(case, T)[None, :, None]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * state[name]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        as_complex = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(as_complex * turns).flatten(3)

    h = state["tok_embeddings.weight"][tokens]
    mask = torch.full((T, T), -math.inf).triu(1)
    for i in range(params["n_layers"]):
        attn, mlp = f"layers.{i}.attention.", f"layers.{i}.feed_forward."
        x = norm(h, f"layers.{i}.attention_norm.weight")
        q = rotate((x @ state[attn + "wq.weight"].T).view(B, T, heads, -1))
        k = rotate((x @ state[attn + "wk.weight"].T).view(B, T, kv_heads, -1))
        v = (x @ state[attn + "wv.weight"].T).view(B, T, kv_heads, -1)
        k, v = (kv.repeat_interleave(heads // kv_heads, dim=2) for kv in (k, v))
        q, k, v = (y.transpose(1, 2) for y in (q, k, v))
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1)
        h = h + mixed @ state[attn + "wo.weight"].T
        x = norm(h, f"layers.{i}.ffn_norm.weight")
        gated = torch.nn.functional.silu(x @ state[mlp + "w1.weight"].T)
        h = h + (gated * (x @ state[mlp + "w3.weight"].T)) @ state[mlp + "w2.weight"].T
    return norm(h, "norm.weight") @ state["output.weight"].T


def draw_tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 96, (2, LENGTH))


logits_of = jax.jit(lambda model, tokens: model(tokens).logits)


@pytest.mark.cases(3)
@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("name", CASES)
def test_any_number_of_shards_is_loaded_and_exported_to_transformers(name, shards, tmp_path):
    """Meta's code, the JAX model and transformers with the export give the same logits."""
    case = CASES[name]
    folder = write(tmp_path / "meta", case, shards)
    expected = reference_logits(case, torch.tensor(draw_tokens()))
    model = load_pretrained(folder, dtype="float32")
    assert model.config.mlp_dim == case.mlp_dim
    assert model.config.vocab_size == case.vocab_size
    assert relative_l2(logits_of(model, draw_tokens()), expected) <= TOLERANCE
    save_pretrained(model, tmp_path / "hf", format="hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    with torch.no_grad():
        logits = theirs(torch.tensor(draw_tokens())).logits
    assert relative_l2(logits, expected) <= TOLERANCE


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("name", CASES)
def test_the_round_trip_with_the_same_shards_is_bit_exact(name, shards, tmp_path):
    folder = write(tmp_path / "meta", CASES[name], shards)
    model = load_pretrained(folder)
    save_pretrained(model, tmp_path / "out")
    assert stored(tmp_path / "out") == stored(folder)
    again = load_pretrained(tmp_path / "out")
    assert again.config == model.config
    assert again.config.numerics.param_dtype == ("bfloat16" if name == "llama31" else "float32")


@pytest.mark.parametrize("name", CASES)
def test_resharding_is_bit_exact(name, tmp_path):
    case = CASES[name]
    model = load_pretrained(write(tmp_path / "two", case, 2))
    for shards in SHARDS:
        out = tmp_path / f"out{shards}"
        save_pretrained(model, out, model_parallel=shards)
        assert stored(out) == stored(write(tmp_path / f"direct{shards}", case, shards))
        assert bits(load_pretrained(out)) == bits(model)


def test_shards_beyond_the_key_value_heads_hold_copies(tmp_path):
    """As in the release of Llama 3.1 405B: neighboring shards hold the same head."""
    case = CASES["llama3"]
    model = load_pretrained(write(tmp_path / "meta", case, 1))
    out = tmp_path / "out"
    save_pretrained(model, out, model_parallel=8)
    whole = random_state(case)
    for rank in range(8):
        shard = torch.load(out / f"consolidated.{rank:02}.pth", weights_only=True)
        for name in ("wk", "wv"):
            key = f"layers.1.attention.{name}.weight"
            assert torch.equal(shard[key], whole[key].chunk(4)[rank // 2])
        assert torch.equal(
            shard["layers.1.attention.wq.weight"],
            whole["layers.1.attention.wq.weight"].chunk(8)[rank],
        )
    again = load_pretrained(out)
    assert bits(again) == bits(model)
    save_pretrained(again, tmp_path / "back")
    assert stored(tmp_path / "back") == stored(out)

    def change(tensors: dict) -> None:
        tensors["layers.1.attention.wv.weight"][3, 5] += 1e-3

    edit_shard(out, 3, change)
    message = problems(out)
    assert "03/layers.1.attention.wv.weight" in message
    assert "02/layers.1.attention.wv.weight" in message


# `use_scaled_rope` alone: the released models have two factors.
RELEASES = {
    "Llama 3.1 8B": ({"ffn_dim_multiplier": 1.3, "multiple_of": 1024}, 8.0),
    "Llama 3.1 405B": ({"ffn_dim_multiplier": 1.2, "multiple_of": 4096}, 8.0),
    "Llama 3.2 1B": ({"ffn_dim_multiplier": 1.5, "multiple_of": 256}, 32.0),
    "Llama 3.2 3B": ({"ffn_dim_multiplier": 1.0, "multiple_of": 256}, 32.0),
}


def with_widths(widths: dict[str, float], **params: float) -> Case:
    """A case with scaled RoPE and other fields for the MLP's width."""
    base = {**CASES["llama31"].params, **widths, **params}
    width = mlp_width(64, int(widths["multiple_of"]), widths.get("ffn_dim_multiplier"), thirds=True)
    return Case(base, mlp_dim=width)


@pytest.mark.parametrize("release", RELEASES)
def test_the_factor_of_a_released_model_is_recognized(release, tmp_path):
    """Hugging Face's config says it; the logits are those of transformers with that config."""
    widths, factor = RELEASES[release]
    model = load_pretrained(write(tmp_path / "meta", with_widths(widths), 1))
    assert model.config.rope.scaling.factor == factor
    save_pretrained(model, tmp_path / "hf", format="hf")
    exported = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert exported["rope_scaling"]["factor"] == factor
    save_pretrained(load_pretrained(tmp_path / "hf"), tmp_path / "back", format="meta")
    assert load_pretrained(tmp_path / "back").config.rope == model.config.rope


def test_a_factor_that_nothing_tells_is_refused_with_the_field_that_decides(tmp_path):
    widths = {"ffn_dim_multiplier": 1.7, "multiple_of": 64}
    message = problems(write(tmp_path / "open", with_widths(widths), 1))
    assert "use_scaled_rope=True leaves the factor open" in message
    assert "add rope_scaling_factor, which is 8 in Llama 3.1 and 3.3 and 32 in" in message
    case = with_widths(widths, rope_scaling_factor=32.0)
    model = load_pretrained(write(tmp_path / "said", case, 1))
    assert model.config.rope.scaling.factor == 32.0


def test_a_base_of_frequencies_that_nothing_tells_is_refused(tmp_path):
    """Llama 1 and 2 leave it out, and their vocabulary tells them; Llama 3 always says it."""
    params = {n: v for n, v in CASES["llama3"].params.items() if n != "rope_theta"}
    message = problems(
        write(tmp_path / "open", dataclasses.replace(CASES["llama3"], params=params), 1)
    )
    assert "rope_theta is missing: add it, 10000 for Llama 1 and 2 or 500000 for Llama 3" in message


def test_fields_of_the_released_params_are_kept(tmp_path):
    folder = write(tmp_path / "meta", CASES["llama3"], 1)
    save_pretrained(load_pretrained(folder), tmp_path / "out")
    exported = json.loads((tmp_path / "out" / "params.json").read_text())
    assert exported == CASES["llama3"].params


def test_a_transformers_model_is_converted_to_meta(tmp_path):
    """Compared with the reference: rotated pairs are permuted and tensors split."""
    case = CASES["llama3"]
    meta = load_pretrained(write(tmp_path / "meta", case, 4))
    save_pretrained(meta, tmp_path / "hf", format="hf")
    from_hf = load_pretrained(tmp_path / "hf")
    save_pretrained(from_hf, tmp_path / "out", format="meta", model_parallel=4)
    assert stored(tmp_path / "out") == stored(tmp_path / "meta")


@pytest.mark.parametrize("chosen", ["meta", "llm", "tlama"])
def test_a_tied_head_is_stored_in_formats_without_tied_heads(chosen, tmp_path):
    tied = random_model(head=HeadConfig(tied=True), head_dim=8)
    shards = {"model_parallel": 2} if chosen == "meta" else {}
    save_pretrained(tied, tmp_path / "out", format=chosen, **shards)
    untied = load_pretrained(tmp_path / "out")
    assert not untied.config.head.tied
    assert bits(untied)["lm_head.kernel"]
    assert relative_l2(logits_of(untied, draw_tokens()), logits_of(tied, draw_tokens())) <= 1e-6


# What is wrong is named.


def test_shards_that_do_not_divide_are_refused_with_both_numbers(tmp_path):
    model = load_pretrained(write(tmp_path / "meta", CASES["llama3"], 2))
    with pytest.raises(CheckpointError) as caught:
        save_pretrained(model, tmp_path / "out", model_parallel=16)
    assert "16 model-parallel shards" in str(caught.value)
    assert "num_heads=8" in str(caught.value)
    assert "num_kv_heads" not in str(caught.value)  # four shards could hold one head each
    with pytest.raises(
        CheckpointError, match=r"3 model-parallel shards .*num_heads=8.*mlp_dim=224.*num_kv_heads=4"
    ):
        save_pretrained(model, tmp_path / "out", model_parallel=3)
    assert not (tmp_path / "out").exists()


def test_a_folder_whose_shards_do_not_divide_the_sizes_is_refused(tmp_path):
    folder = write(tmp_path / "meta", CASES["llama3"], 2)
    (folder / "consolidated.02.pth").write_bytes((folder / "consolidated.01.pth").read_bytes())
    message = problems(folder)
    assert "3 model-parallel shards" in message
    assert "num_kv_heads=4" in message


@pytest.mark.parametrize("norm", ["norm", "layers.1.attention_norm", "layers.0.ffn_norm"])
def test_norms_that_differ_between_shards_are_reported(norm, tmp_path):
    folder = write(tmp_path / "meta", CASES["llama3"], 4)

    def change(tensors: dict) -> None:
        tensors[f"{norm}.weight"][5] += 1e-3

    edit_shard(folder, 2, change)
    message = problems(folder)
    assert f"02/{norm}.weight" in message
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(("present", "absent"), [((0, 2, 3), 1), ((1, 2, 3), 0), ((0,), 1)])
def test_a_missing_shard_is_reported(present, absent, tmp_path):
    folder = write(tmp_path / "meta", CASES["llama3"], 4 if len(present) > 1 else 2)
    (folder / f"consolidated.{absent:02}.pth").unlink()
    message = problems(folder)
    if len(present) > 1:
        assert "consolidated.01.pth" in message
        assert f"consolidated.{present[-1]:02}.pth" in message
    else:  # One of two shards holds half of everything.
        assert "vocab_size is 96 in the config, but 48 by the shapes of 00/tok_embed" in message
        assert "00/layers.{0..1}.attention.wq.weight" in message


@pytest.mark.parametrize("name", ["layers.1.attention.wk.weight", "output.weight", "norm.weight"])
def test_a_tensor_that_one_shard_lacks_is_named(name, tmp_path):
    folder = write(tmp_path / "meta", CASES["llama3"], 2)
    edit_shard(folder, 1, lambda tensors: tensors.pop(name))
    assert f"01/{name} is missing" in problems(folder)


def test_an_additional_tensor_in_one_shard_is_reported(tmp_path):
    folder = write(tmp_path / "meta", CASES["llama3"], 2)
    edit_shard(folder, 1, lambda tensors: tensors.update({"layers.2.norm.weight": torch.ones(1)}))
    assert "01/layers.2.norm.weight is unexpected" in problems(folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dimm": 64}, "dimm=64"),
        ({"n_heads": "8"}, "n_heads='8'"),
        ({"norm_eps": None}, "norm_eps is missing"),
        ({"moe_args": {"num_experts": 16}}, "layers.{0..1}.feed_forward.router_DE are missing"),
        ({"moe_args": {"num_experts": 16, "topk": 2}}, "moe_args: topk=2"),
        ({"moe_args": {"num_experts": 2, "top_k": 4}}, "top_k=4"),
        ({"nope_layer_interval": 0}, "nope_layer_interval=0"),
        ({"lora_args": {"rank": 8}}, "lora_args"),
        ({"ffn_dim_multiplier": 1.4}, "feed_forward.w1.weight"),
    ],
    ids=str,
)
def test_unsupported_params_are_reported(changes, said, tmp_path):
    folder = write(tmp_path / "meta", CASES["llama3"], 1)
    (folder / "params.json").write_text(json.dumps(CASES["llama3"].params | changes))
    assert said in problems(folder)


def test_configs_that_params_json_does_not_support_are_refused(tmp_path):
    biased = {"attention.qkv_bias": True, "attention.out_bias": True}
    model = random_model(biased, head_dim=16)
    with pytest.raises(CheckpointError, match=r"(?s)(?=.*qkv_bias)(?=.*head_dim=16)"):
        save_pretrained(model, tmp_path / "out", format="meta")
