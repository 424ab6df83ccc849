"""A zoo of correct models that resemble trained ones, on which parity must raise no alarm."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from hf_cases import CASES, randomize, tokens_of
from torch import nn

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import Report, compare
from jaxllm.interop.parity.levels.table import LEVELS

FAMILIES = (
    *("gpt2", "gpt_neox", "llama/llama3", "llama4_text", "gemma2", "mixtral", "olmo2"),
    *("qwen3", "qwen3_moe", "smollm3"),
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
    """Makes attention choose single keys."""
    for name, weight in model.named_parameters():
        if any(part in name for part in ("q_proj.weight", "c_attn.weight", "query_key_value.w")):
            weight.mul_(6)


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
            tokens = torch.tensor(rows)
            loss = model(tokens, labels=tokens).loss
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


def build(member: ZooModel) -> nn.Module:
    """Builds the model of transformers."""
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
    tokens_BT = tokens_of(reference, batch_size=1, seed=member.seed + 1)[:, :128]
    tokens_BT[:, 0] = 0
    assert set(levels) <= LEVELS.keys()
    return compare(reference, model, tokens_BT, levels=levels)
