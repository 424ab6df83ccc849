"""tlama-core's Transformer, rewritten from its documents: equal logits, bit-exact round trip."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from tiny import relative_l2
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained

TOLERANCE = 1e-5  # relative L2 of logits, float32
LENGTH = 300

BASE = {
    "model_type": "tlama",
    "d_model": 48,
    "n_layers": 2,
    "n_heads": 6,
    "vocab_size": 96,
    "multiple_of": 16,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_seq_len": 320,
}
CASES = {
    "plain": {},
    "gqa": {"n_kv_heads": 2, "rope_theta": 500000.0},
    "multiplier": {"ffn_dim_multiplier": 0.7, "max_batch_size": 4, "use_parallel": False},
}
MLP_DIM = {"plain": 128, "gqa": 128, "multiplier": 144}  # 192 -> 128; 192 * 0.7 -> 134 -> 144


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.float()
        return (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(
            x
        ) * self.weight


class Attention(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.n_heads = config["n_heads"]
        self.n_kv_heads = config.get("n_kv_heads") or self.n_heads
        width = config["d_model"]
        self.head_dim = width // self.n_heads
        self.Wq = nn.Linear(width, width, bias=False)
        self.Wk = nn.Linear(width, self.n_kv_heads * self.head_dim, bias=False)
        self.Wv = nn.Linear(width, self.n_kv_heads * self.head_dim, bias=False)
        self.Wo = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, freq_cis: torch.Tensor) -> torch.Tensor:
        B, T, _ = x.shape
        q = self.Wq(x).view(B, T, self.n_heads, self.head_dim)
        k = self.Wk(x).view(B, T, self.n_kv_heads, self.head_dim)
        v = self.Wv(x).view(B, T, self.n_kv_heads, self.head_dim)
        q, k = apply_rope(q, freq_cis), apply_rope(k, freq_cis)
        repeats = self.n_heads // self.n_kv_heads
        k, v = k.repeat_interleave(repeats, 2), v.repeat_interleave(repeats, 2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        scores = q @ k.transpose(2, 3) / math.sqrt(self.head_dim)
        scores = scores + torch.full((T, T), -math.inf).triu(1)
        return self.Wo((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, -1))


class FeedForward(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        width, multiplier = config["d_model"], config.get("ffn_dim_multiplier")
        hidden = 4 * width
        hidden = int(2 * hidden / 3) if multiplier is None else int(hidden * multiplier)
        multiple = config["multiple_of"]
        hidden = (hidden + multiple - 1) // multiple * multiple
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.attention, self.ffn = Attention(config), FeedForward(config)
        self.attention_norm = RMSNorm(config["d_model"], config["norm_eps"])
        self.ffn_norm = RMSNorm(config["d_model"], config["norm_eps"])

    def forward(self, x: torch.Tensor, freq_cis: torch.Tensor) -> torch.Tensor:
        h = x + self.attention(self.attention_norm(x), freq_cis)
        return h + self.ffn(self.ffn_norm(h))


class Transformer(nn.Module):
    """Transformer with the original's names and persistent buffer."""

    def __init__(self, config: dict):
        super().__init__()
        self.token_emb = nn.Embedding(config["vocab_size"], config["d_model"])
        self.layers = nn.ModuleList(Block(config) for _ in range(config["n_layers"]))
        self.norm = RMSNorm(config["d_model"], config["norm_eps"])
        self.output = nn.Linear(config["d_model"], config["vocab_size"], bias=False)
        head_dim = config["d_model"] // config["n_heads"]
        frequencies = 1 / config["rope_theta"] ** (torch.arange(0, head_dim, 2).float() / head_dim)
        angles = torch.outer(torch.arange(2 * config["max_seq_len"]).float(), frequencies)
        self.register_buffer("freq_cis", torch.polar(torch.ones_like(angles), angles))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.token_emb(tokens)
        for layer in self.layers:
            h = layer(h, self.freq_cis[: tokens.shape[1]])
        return self.output(self.norm(h))


def apply_rope(x: torch.Tensor, freq_cis: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * freq_cis[None, :, None]).flatten(3)


def random_transformer(case: str) -> Transformer:
    """Builds a model with distinct random numbers in every parameter; no norm scale is one."""
    generator = torch.Generator().manual_seed(len(case))
    model = Transformer(BASE | CASES[case])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * drawn if "norm" in name else 0.15 * drawn)
    return model


def write(folder: Path, case: str) -> Path:
    """Saves a folder as users of tlama-core would."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BASE | CASES[case]))
    torch.save(random_transformer(case).state_dict(), folder / "state_dict.pth")
    return folder


def load_state(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "state_dict.pth", weights_only=True)


def draw_tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, BASE["vocab_size"], (2, LENGTH))


logits_of = jax.jit(lambda model, tokens: model(tokens).logits)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_original_and_its_export_to_transformers(case, tmp_path):
    with torch.no_grad():
        expected = random_transformer(case)(torch.tensor(draw_tokens()))
    model = load_pretrained(write(tmp_path / "tlama", case))
    assert model.config.mlp_dim == MLP_DIM[case]
    assert relative_l2(logits_of(model, draw_tokens()), expected) <= TOLERANCE
    save_pretrained(model, tmp_path / "hf", format="hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager")
    with torch.no_grad():
        logits = theirs(torch.tensor(draw_tokens())).logits
    assert relative_l2(logits, expected) <= TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_the_round_trip_is_bit_exact(case, tmp_path):
    model = load_pretrained(write(tmp_path / "tlama", case))
    save_pretrained(model, tmp_path / "out")
    ours, theirs = load_state(tmp_path / "out"), load_state(tmp_path / "tlama")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        if name != "freq_cis":
            assert torch.equal(ours[name].view(torch.int32), tensor.view(torch.int32)), name
    # A recomputed buffer: the last bit of a large angle's cosine may differ.
    buffers = (torch.view_as_real(state["freq_cis"]) for state in (ours, theirs))
    assert relative_l2(*buffers) <= 1e-6
    again = Transformer(json.loads((tmp_path / "out" / "config.json").read_text()))
    again.load_state_dict(ours)
    assert load_pretrained(tmp_path / "out").config == model.config


@pytest.mark.parametrize("case", CASES)
def test_the_config_survives_the_round_trip(case, tmp_path):
    save_pretrained(load_pretrained(write(tmp_path / "tlama", case)), tmp_path / "out")
    exported = json.loads((tmp_path / "out" / "config.json").read_text())
    assert exported == BASE | CASES[case]


def test_a_transformers_model_is_converted_to_tlama(tmp_path):
    folder = write(tmp_path / "tlama", "gqa")
    save_pretrained(load_pretrained(folder), tmp_path / "hf", format="hf")
    save_pretrained(load_pretrained(tmp_path / "hf"), tmp_path / "out", format="tlama")
    ours, theirs = load_state(tmp_path / "out"), load_state(folder)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name != "freq_cis")


def test_the_derived_buffer_is_optional(tmp_path):
    folder = write(tmp_path / "tlama", "plain")
    state = load_state(folder)
    del state["freq_cis"]
    torch.save(state, folder / "state_dict.pth")
    save_pretrained(load_pretrained(folder), tmp_path / "out")
    assert "freq_cis" in load_state(tmp_path / "out")


def problems(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_pretrained(folder)
    return str(caught.value)


def test_full_width_keys_with_grouped_queries_are_reported(tmp_path):
    """The original constructor makes them, but its own forward pass does not run with them."""
    folder = write(tmp_path / "tlama", "gqa")
    state = load_state(folder)
    state["layers.1.attention.Wk.weight"] = torch.ones(48, 48)
    torch.save(state, folder / "state_dict.pth")
    message = problems(folder)
    assert "layers.1.attention.Wk.weight" in message
    assert "48 in the file" in message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"d_modle": 48}, "d_modle=48"),
        ({"n_heads": 6.5}, "n_heads=6.5"),
        ({"weight_init": [0.02, 0.1]}, "weight_init=[0.02, 0.1]"),
        ({"weight_init": [0.02]}, "weight_init=[0.02]"),
        ({"weight_init": ["small", 0.0]}, "weight_init=['small', 0.0]"),
        ({"n_kv_heads": 4}, "num_kv_heads=4"),
        ({"n_layers": 3}, "layers.2.attention.Wq.weight is missing"),
        ({"n_layers": 1}, "layers.1.ffn.w2.weight is unexpected"),
    ],
    ids=str,
)
def test_problems_of_the_arguments_are_reported(changes, said, tmp_path):
    folder = write(tmp_path / "tlama", "plain")
    (folder / "config.json").write_text(json.dumps(BASE | changes))
    assert said in problems(folder)


def test_configs_that_tlama_does_not_support_are_refused(tmp_path):
    folder = write(tmp_path / "tlama", "plain")
    save_pretrained(load_pretrained(folder), tmp_path / "hf", format="hf")
    file = tmp_path / "hf" / "config.json"
    config = json.loads(file.read_text())
    config["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    file.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"rope\.scaling"):
        save_pretrained(load_pretrained(tmp_path / "hf"), tmp_path / "out", format="tlama")
    assert not (tmp_path / "out").exists()
