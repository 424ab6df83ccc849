"""Optimizer step, 32M-parameter Llama, float32: jaxllm against transformers in eager PyTorch."""

from collections.abc import Callable

import jax
import numpy as np
from side_by_side import Comparison, compare

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.huggingface.llama import write_config
from jaxllm.interop.reference.transformers_models import require_torch
from jaxllm.params import initialize, split
from jaxllm.train import TrainConfig, make_mesh
from jaxllm.train.optimizers.adamw import OptimizerConfig
from jaxllm.train.step import make_steps

LLAMA = DecoderConfig(
    vocab_size=8192,
    embed_dim=512,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    head_dim=64,
    mlp_dim=1408,
    max_len=512,
)
B, T = 4, 512
CONFIG = TrainConfig(
    output="unused",
    steps=1000,
    batch_size=B,
    seq_len=T,
    model=LLAMA,
    optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.1, clip_norm=1.0),
)


def run(rounds: int) -> Comparison:
    """Measures steps on the same tokens, synchronized after each."""
    tokens = np.random.default_rng(0).integers(0, LLAMA.vocab_size, (B, T + 1))
    return compare(
        "train step, 32M, B 4, T 512",
        _ours(tokens),
        _theirs(tokens),
        rounds=rounds,
        target=0.8,
    )


def _ours(tokens: np.ndarray) -> Callable[[], None]:
    mesh = make_mesh()
    model = initialize(LLAMA, mesh, 0)
    with jax.set_mesh(mesh):
        steps = make_steps(CONFIG, model, mesh)
        state = [steps.init(split(model)[1])]
    batch = {"tokens": tokens.astype(np.int32), "mask": np.ones((B, T), bool)}

    def step() -> None:
        with jax.set_mesh(mesh):
            state[0], metrics = steps.train(state[0], batch)
            jax.block_until_ready((state[0], metrics))

    return step


def _theirs(tokens: np.ndarray) -> Callable[[], None]:
    torch, transformers = require_torch()
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**write_config(LLAMA, {})))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    inputs, targets = torch.tensor(tokens[:, :-1]), torch.tensor(tokens[:, 1:])

    def step() -> None:
        optimizer.zero_grad()
        logits = model(input_ids=inputs, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return step
