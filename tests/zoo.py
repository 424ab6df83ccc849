"""A zoo of correct models that resemble trained ones, on which parity must raise no alarm."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from encoder_decoder_case import calm
from encoder_decoder_cases import CASES as PAIRS
from hf_cases import CASES, randomize, tokens_of
from torch import nn

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import Report, compare
from jaxllm.interop.parity.alignment.adapters import adapter_of
from jaxllm.interop.parity.alignment.inputs import Inputs, draw
from jaxllm.interop.parity.levels.table import LEVELS
from jaxllm.models import Model

IMAGES = ("llama4", "gemma3", "mistral3", "llava")
FAMILIES = (
    *("gpt2", "gpt_neox", "llama/llama3", "llama4_text", "gemma2", "mixtral", "olmo2"),
    *("qwen3", "qwen3_moe", "smollm3"),
)
# All other plain decoders, experts and latent attention among them, and all encoder-decoders; one
# seed each. Families that read another one's architecture, and images, are left out.
OTHERS = tuple(
    name
    for name in (*CASES, *PAIRS)
    if "/" not in name and name not in (*FAMILIES, *IMAGES, "llama")  # llama/llama3 is in
)
SEEDS = range(5)
TRAINING_STEPS = 300


class ZooModel(NamedTuple):
    """One model of the zoo."""

    kind: str
    family: str
    seed: int

    def __str__(self) -> str:
        return f"{self.kind}, {self.family}, seed {self.seed}"


def outliers(factor: float) -> Callable[[nn.Module], None]:
    """Returns a function that makes two channels of the embeddings larger than all others."""

    def plant(model: nn.Module) -> None:
        model.get_input_embeddings().weight[:, [3, 17]] *= factor

    return plant


def sink(model: nn.Module) -> None:
    """Makes the embedding of token 0, with which every row begins, larger than all others."""
    model.get_input_embeddings().weight[0] *= 100


def saturate(model: nn.Module) -> None:
    """Makes attention choose single keys; a norm of the queries would undo larger projections."""
    named = dict(model.named_parameters())
    norms = [name for name in named if QUERY_NORM.search(name)]
    for name in norms or [name for name in named if QUERY.search(name)]:
        named[name].mul_(6)


# Names of the weights that compute queries, and of the scales of norms behind them.
QUERY = re.compile(
    r"(q_proj|q_b_proj|qkv_proj|c_attn|query_key_value|(Self|EncDec)Attention\.q|qkv)\.weight$"
)
QUERY_NORM = re.compile(r"(q_norm|q_layernorm|query_layernorm)\.(weight|norms\.\d+\.weight)$")


def round_to_bfloat16(model: nn.Module) -> None:
    """Rounds all weights as checkpoints in bfloat16 do."""
    for weight in model.parameters():
        weight.copy_(weight.bfloat16())


def train(model: nn.Module) -> None:
    """Trains on sequences in which each token follows from the last two."""
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    with torch.enable_grad():
        for _ in range(TRAINING_STEPS):
            rows = rng.integers(0, 96, (8, 32))
            for t in range(2, 32):
                rows[:, t] = (rows[:, t - 1] + 3 * rows[:, t - 2] + 1) % 96
            loss = model(torch.tensor(rows), labels=torch.tensor(rows)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


# What is done to a random model's weights, by kind.
WEIGHTS: dict[str, Callable[[nn.Module], None]] = {
    "outlier channels x 100": outliers(100),
    "outlier channels x 1000": outliers(1000),
    "attention sink": sink,
    "saturated attention": saturate,
    "weights rounded to bfloat16": round_to_bfloat16,
    "trained": train,
}
# What is changed in a family's config, by kind.
CONFIGS: dict[str, dict[str, object]] = {
    "48 layers": {"num_hidden_layers": 48},
    "large tied embedding": {"vocab_size": 8192, "tie_word_embeddings": True},
    "width 4096": {"hidden_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 8},
}
# Configs that a family does not have: its layers are of several kinds, or its heads of fixed width.
LEFT_OUT = {("48 layers", "smollm3"), ("width 4096", "smollm3"), ("width 4096", "llama4_text")}
# These take long; one seed each.
LARGE = ("48 layers", "width 4096")


def zoo_models() -> Iterator[ZooModel]:
    """Yields every model of the zoo."""
    for kind in (*WEIGHTS, *CONFIGS):
        for family in FAMILIES:
            for seed in SEEDS if kind not in LARGE else SEEDS[:1]:
                if (kind, family) not in LEFT_OUT:
                    yield ZooModel(kind, family, seed)
    yield from (ZooModel(kind, family, 0) for kind in WEIGHTS for family in OTHERS)


def build(member: ZooModel) -> nn.Module:
    """Builds the model of transformers."""
    if member.family in PAIRS:
        model = calm(randomize(PAIRS[member.family].build(), member.seed))
    else:
        case = CASES[member.family]
        changed = {**case.changes, **CONFIGS.get(member.kind, {})}
        model = randomize(dataclasses.replace(case, changes=changed).build(), member.seed)
    with torch.no_grad():
        WEIGHTS.get(member.kind, lambda model: None)(model)
    return model.eval()


def check(member: ZooModel, folder: Path, levels: tuple[str, ...] = ("logits", "layers")) -> Report:
    """Compares a model of the zoo with its import into JAX, by way of `folder`."""
    reference = build(member)
    reference.save_pretrained(folder)
    model = load_pretrained(folder, dtype="float32")
    assert set(levels) <= LEVELS.keys()
    return compare(reference, model, inputs_of(member, reference, model), levels=levels)


def inputs_of(member: ZooModel, reference: nn.Module, model: Model) -> Inputs:
    """Draws one row of 128 random tokens, whose first is the sink."""
    if member.family in PAIRS:
        adapter = adapter_of(reference)
        size = {"num_tokens": 128, "batch_size": 1, "seed": member.seed + 1}
        drawn = draw(model, adapter.masks(reference), **size)
        return drawn.replace_token(adapter.padding_token(reference), model)
    tokens_BT = tokens_of(reference, batch_size=1, seed=member.seed + 1)[:, :128]
    tokens_BT[:, 0] = 0
    return Inputs.of(tokens_BT)
