"""`python benchmarks/gpu.py`: training steps of a Llama of 1.2B parameters on one accelerator.

jaxllm against transformers with `torch.compile` and scaled dot product attention, on the same card:
bfloat16 products, float32 parameters, T 4096, no remat. It prints the ratio of the times, and of
both the tokens per second and the model FLOPs utilization, with the device's name.

    python benchmarks/gpu.py [--batch-size 2] [--rounds 7] [--eager] [--json FILE] [--toy]
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory as well

import jax
from side_by_side import Comparison
from train_step import Case

from jaxllm.config import DecoderConfig, with_fields
from jaxllm.interop.reference.transformers_models import require_torch
from jaxllm.models import build_abstract
from jaxllm.train.speed.device_peaks import peak_flops
from jaxllm.train.speed.model_flops import flops_per_example

# The sizes of Llama 3.2 1B.
LLAMA = with_fields(
    DecoderConfig(
        vocab_size=128_256,
        embed_dim=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_dim=64,
        mlp_dim=8192,
        max_len=4096,
    ),
    {"head.tied": True, "rope.theta": 500_000.0},
)
TOY = with_fields(
    LLAMA,
    {"vocab_size": 128, "embed_dim": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1}
    | {"head_dim": 16, "mlp_dim": 64, "max_len": 64},
)


def case_of(arguments: argparse.Namespace) -> Case:
    """Returns what is measured."""
    torch, _ = require_torch()
    return Case(
        TOY if arguments.toy else LLAMA,
        batch_size=arguments.batch_size,
        seq_len=64 if arguments.toy else 4096,
        is_mixed=True,
        is_compiled=not arguments.eager,
        torch_device="cuda" if torch.cuda.is_available() else "cpu",
    )


def figures(case: Case, found: Comparison, device: jax.Device) -> dict[str, object]:
    """Returns the figures of both sides; an unknown peak leaves the utilization out."""
    torch, transformers = require_torch()
    tokens = case.batch_size * case.seq_len
    flops = case.batch_size * flops_per_example(build_abstract(case.model), case.seq_len)
    peak = peak_flops(device)
    sides = {
        name: {
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "mfu": None if peak is None else flops / seconds / peak,
        }
        for name, seconds in (("jaxllm", found.ours), ("torch", found.theirs))
    }
    packages = (jax, torch, transformers)
    return {
        "device": device.device_kind,
        "versions": {package.__name__: package.__version__ for package in packages},
        "peer": "compiled" if case.is_compiled else "eager",
        "batch_size": case.batch_size,
        "seq_len": case.seq_len,
        "ratio": found.ratio,
        "quartiles": found.spread,
        **sides,
    }


def main() -> None:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=2, help="sequences (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps (%(default)s)")
    parser.add_argument("--eager", action="store_true", help="PyTorch does not compile")
    parser.add_argument("--toy", action="store_true", help="a tiny model, also on CPU")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    arguments, device = parser.parse_args(), jax.devices()[0]
    if device.platform == "cpu" and not arguments.toy:
        parser.error("there is no accelerator; --toy runs a tiny model on CPU")
    case = case_of(arguments)
    if case.torch_device != "cuda" and device.platform == "gpu":
        parser.error("PyTorch does not see the GPU: install its build for CUDA")
    found = figures(case, case.compare("train step", arguments.rounds, target=0.0), device)
    text = json.dumps(found, indent=2)
    print(text)
    if arguments.json is not None:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
