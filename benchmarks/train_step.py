"""Optimizer steps of a Llama: jaxllm against transformers in PyTorch, on the same tokens.

In `make bench`: 32M parameters, float32, PyTorch eager and compiled.
"""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from side_by_side import Comparison, compare

from jaxllm.config import DecoderConfig, with_fields
from jaxllm.interop.families.huggingface.pre_norm.llama import write_config
from jaxllm.interop.reference.transformers_models import require_torch
from jaxllm.params import initialize, split
from jaxllm.train import TrainConfig, make_mesh
from jaxllm.train.optimizers.config import OptimizerConfig
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


@dataclasses.dataclass(frozen=True)
class Case:
    """A model to train, the shape of its batches, and how both sides compute.

    Attributes:
        model: its config; parameters are float32.
        batch_size: sequences of a step.
        seq_len: their tokens.
        is_mixed: whether matrices are multiplied in bfloat16.
        is_compiled: whether PyTorch compiles its model.
        torch_device: where PyTorch computes.
    """

    model: DecoderConfig
    batch_size: int
    seq_len: int
    is_mixed: bool = False
    is_compiled: bool = False
    torch_device: str = "cpu"

    def compare(self, name: str, rounds: int, target: float) -> Comparison:
        """Measures steps alternately, each synchronized."""
        shape = self.batch_size, self.seq_len + 1
        tokens = np.random.default_rng(0).integers(0, self.model.vocab_size, shape)
        return compare(name, self._ours(tokens), self._theirs(tokens), rounds=rounds, target=target)

    def _ours(self, tokens: np.ndarray) -> Callable[[], None]:
        dtype = "bfloat16" if self.is_mixed else "float32"
        config = TrainConfig(
            output="unused",
            steps=1000,
            batch_size=self.batch_size,
            seq_len=self.seq_len,
            model=with_fields(self.model, {"numerics.dtype": dtype}),
            optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.1, clip_norm=1.0),
        )
        mesh = make_mesh(devices=jax.devices()[:1])
        model = initialize(config.model, mesh, 0)
        with jax.set_mesh(mesh):
            steps = make_steps(config, model, mesh)
            state = [steps.init(split(model)[1])]
        mask = np.ones((self.batch_size, self.seq_len), bool)
        batch = {"tokens": tokens.astype(np.int32), "mask": mask}

        def step() -> None:
            with jax.set_mesh(mesh):
                state[0], metrics = steps.train(state[0], batch)
                jax.block_until_ready((state[0], metrics))

        return step

    def _theirs(self, tokens: np.ndarray) -> Callable[[], None]:
        torch, transformers = require_torch()
        config = transformers.LlamaConfig(**write_config(self.model, {}))
        model = transformers.LlamaForCausalLM(config).to(self.torch_device).train()
        forward = torch.compile(model) if self.is_compiled else model
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1
        )
        given = torch.tensor(tokens, device=self.torch_device)
        mixed = torch.autocast(self.torch_device, torch.bfloat16, enabled=self.is_mixed)

        def step() -> None:
            optimizer.zero_grad()
            with mixed:
                logits = forward(input_ids=given[:, :-1], use_cache=False).logits
            targets = given[:, 1:].flatten()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()

        return step


def run(rounds: int) -> list[Comparison]:
    """Measures the small model against eager PyTorch and against `torch.compile`."""
    eager = Case(LLAMA, batch_size=4, seq_len=512)
    compiled = dataclasses.replace(eager, is_compiled=True)
    name = "train step, 32M, B 4, T 512"
    return [
        eager.compare(f"{name}, eager", rounds, target=1.3),
        compiled.compare(f"{name}, torch.compile", rounds, target=1.0),
    ]
