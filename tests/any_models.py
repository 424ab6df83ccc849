"""The Llama of docs/rules.md in Equinox, in Linen and in transformers, and the rules for it."""

import runpy
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
import torch
import transformers
from hf_case import randomize
from pages import ROOT, shown_files

FILES = shown_files(ROOT / "docs" / "rules.md")
SIZE = {"vocab": 96, "width": 48, "depth": 3, "heads": 6, "kv_heads": 2, "hidden": 80}
KEY = jax.random.key(0)


class AnyModel(NamedTuple):
    """A model of the page: its parameters as shapes, its function of them, and its rules."""

    shapes: Any
    apply: Any
    rules: list


@cache
def equinox_llama() -> AnyModel:
    """The Equinox module, which takes one row of tokens at a time."""
    shapes = eqx.filter_eval_shape(_run("equinox_llama.py")["Llama"], **SIZE, key=KEY)
    rules = _run("equinox_rules.py")["rules"]
    return AnyModel(shapes, lambda model, tokens: jax.vmap(model)(tokens), rules)


@cache
def linen_llama() -> AnyModel:
    """The Linen module, which scans over its layers."""
    module = _run("linen_llama.py")["Llama"](**SIZE)
    shapes = jax.eval_shape(module.init, KEY, tokens())
    return AnyModel(shapes, module.apply, _run("linen_rules.py")["rules"])


@cache
def _run(name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(FILES[name])
        return runpy.run_path(str(file))


def torch_llama() -> torch.nn.Module:
    """The same model of transformers, with distinct random numbers in every tensor."""
    config = transformers.LlamaConfig(
        vocab_size=SIZE["vocab"],
        hidden_size=SIZE["width"],
        num_hidden_layers=SIZE["depth"],
        num_attention_heads=SIZE["heads"],
        num_key_value_heads=SIZE["kv_heads"],
        intermediate_size=SIZE["hidden"],
        rms_norm_eps=1e-5,
        attn_implementation="eager",
    )
    return randomize(transformers.LlamaForCausalLM(config)).eval()


def tokens(batch_size: int = 2, length: int = 320) -> np.ndarray:
    """Random tokens, BT."""
    return np.random.default_rng(0).integers(0, SIZE["vocab"], (batch_size, length))


def torch_logits(module: torch.nn.Module, tokens_BT: np.ndarray) -> np.ndarray:
    """The logits of the model of transformers, BTV."""
    with torch.no_grad():
        return module(torch.tensor(tokens_BT)).logits.numpy()
