"""Steps of LoRA on a Llama: jaxllm against PEFT on PyTorch, and its memory against full training.

    python benchmarks/lora.py [--toy] [--rounds 7] [--json FILE]

In `make bench`: 32M parameters, rank 16 beside every projection, float32, eager PyTorch.
"""

import argparse
import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from side_by_side import Comparison
from train_step import LLAMA, Case

from jaxllm.config import DecoderConfig
from jaxllm.interop.families.huggingface.pre_norm.llama import write_config
from jaxllm.interop.reference.transformers_models import require_torch
from jaxllm.lora.config import LoraConfig
from jaxllm.params import initialize
from jaxllm.train import TrainConfig, make_mesh
from jaxllm.train.finetuning.start import init_state, model_to_train, starting_weights
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.step import Steps, TrainState, make_steps

LORA = LoraConfig(rank=16, alpha=32)
TOY = dataclasses.replace(LLAMA, vocab_size=256, embed_dim=32, num_layers=2, mlp_dim=64)


class LoraCase(Case):
    """Steps that train factors beside every projection."""

    def _ours(self, tokens: np.ndarray) -> Callable[[], None]:
        steps, first = start(self, LORA)
        state, mesh = [first], make_mesh(devices=jax.devices()[:1])

        def step() -> None:
            with jax.set_mesh(mesh):
                state[0], metrics = steps.train(state[0], batch_of(tokens))
                jax.block_until_ready((state[0].params, metrics))

        return step

    def _theirs(self, tokens: np.ndarray) -> Callable[[], None]:
        import peft

        torch, transformers = require_torch()
        config = transformers.LlamaConfig(**write_config(self.model, {}))
        options = peft.LoraConfig(
            r=LORA.rank, lora_alpha=int(LORA.alpha), target_modules="all-linear"
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.get_peft_model(transformers.LlamaForCausalLM(config), options).train()
        trained = [x for x in model.parameters() if x.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
        given = torch.tensor(tokens)

        def step() -> None:
            optimizer.zero_grad()
            logits = model(input_ids=given[:, :-1], use_cache=False).logits
            targets = given[:, 1:].flatten()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            loss.item()

        return step


def batch_of(tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Returns a batch of which every token counts."""
    mask = np.ones((tokens.shape[0], tokens.shape[1] - 1), bool)
    return {"tokens": tokens.astype(np.int32), "mask": mask}


def start(case: Case, lora: LoraConfig | None) -> tuple[Steps, TrainState]:
    """Returns the steps of a run, and its state before the first."""
    config = TrainConfig(
        output="unused",
        steps=1000,
        batch_size=case.batch_size,
        seq_len=case.seq_len,
        init_from="a checkpoint",
        optimizer=OptimizerConfig(learning_rate=1e-4, lora=lora),
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = model_to_train(config, initialize(case.model, mesh, 0))
        steps = make_steps(config, model, mesh)
        return steps, init_state(steps, starting_weights(config, model, mesh))


def memory_of(case: Case, lora: LoraConfig | None) -> float:
    """Returns what a compiled step holds at most, in MiB: its arguments and temporary arrays."""
    tokens = np.zeros((case.batch_size, case.seq_len + 1), np.int32)
    steps, state = start(case, lora)
    train: Any = steps.train
    with jax.set_mesh(make_mesh(devices=jax.devices()[:1])):
        found = train.lower(state, batch_of(tokens)).compile().memory_analysis()
    return (found.argument_size_in_bytes + found.temp_size_in_bytes) / 2**20


def run(
    rounds: int, model: DecoderConfig = LLAMA, batch_size: int = 4, seq_len: int = 512
) -> list[Comparison]:
    """Measures both."""
    case = LoraCase(model, batch_size, seq_len)
    shape = f"B {batch_size}, T {seq_len}"
    ours, full = (memory_of(case, lora) for lora in (LORA, None))
    return [
        case.compare(f"LoRA step, rank 16, {shape}, PEFT", rounds, target=1.2),
        Comparison(
            f"memory of a LoRA step, {shape}, full training",
            *(ours, full, full / ours, (full / ours,) * 2),
            target=1.0,
            unit="MiB",
        ),
    ]


def main() -> None:
    """Prints the comparisons as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="a tiny model")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs (%(default)s)")
    parser.add_argument("--json", help="file to write the results to")
    arguments = parser.parse_args()
    sizes: dict[str, Any] = {"model": TOY, "batch_size": 2, "seq_len": 16} if arguments.toy else {}
    text = json.dumps([row._asdict() for row in run(arguments.rounds, **sizes)], indent=2)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
