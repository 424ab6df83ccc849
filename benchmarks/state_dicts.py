"""State dicts of 1 GB in memory, bfloat16: `from_torch` and `to_torch` against copying them.

`from_torch` transposes, stacks and shards, and `to_torch` does the reverse. The peer copies the
state dict as it is: `{name: tensor.clone()}`.
"""

import ctypes
import gc
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import torch
from jax.sharding import Mesh
from large_llama import LLAMA
from memory import peak_above
from own_process import run_script, write_figures
from side_by_side import Comparison, compare

from jaxllm.config import with_fields
from jaxllm.interop import from_torch, to_torch
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA as FAMILY
from jaxllm.interop.optimizer_state.parameter_order import build_without_weights
from jaxllm.models import Model
from jaxllm.params import named_parameters
from jaxllm.train import make_mesh

BUDGET = 256  # MiB of host memory above the arrays
# Of the copy's speed. `to_torch` also builds the module, without weights, to know its names.
TARGETS = {"from_torch": 1 / 1.3, "to_torch": 1 / 1.3}
LAYERS = 9  # 1.06 GB


def run(rounds: int) -> list[Comparison]:
    """Measures in a process of its own, with 8 virtual devices."""
    return run_script(__file__, rounds)


def _compare_all(folder: Path, rounds: int) -> Iterator[Comparison]:
    config = FAMILY.write_config(with_fields(LLAMA, num_layers=LAYERS), {})
    state = _random_state(config)
    yield from _compare_on("one device", None, state, config, rounds)
    yield from _compare_on("8 devices", make_mesh(fsdp=4, tensor=2), state, config, rounds)


def _compare_on(
    where: str,
    mesh: Mesh | None,
    state: dict[str, torch.Tensor],
    config: dict[str, Any],
    rounds: int,
) -> Iterator[Comparison]:
    """Compares both directions with copying the state dict, and their memory with the budget."""
    size = f"{sum(tensor.nbytes for tensor in state.values()) / 1e9:.2f} GB"

    def load() -> Model:
        model = from_torch(state, config=config, mesh=mesh)
        jax.block_until_ready(_arrays(model))
        return model

    def export() -> dict[str, torch.Tensor]:
        return to_torch(model)

    def copy() -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in state.items()}

    what = f"from_torch, {size} onto {where}"
    yield _memory(f"{what}, host memory above the arrays against a budget", load, rounds)
    against = "against a copy of the state dict"
    yield compare(f"{what}, {against}", load, copy, rounds=rounds, target=TARGETS["from_torch"])
    model, what = load(), f"to_torch, {size} from {where}"
    yield _memory(f"{what}, host memory above the tensors against a budget", export, rounds)
    yield compare(f"{what}, {against}", export, copy, rounds=rounds, target=TARGETS["to_torch"])


def _random_state(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Returns the state dict of a Llama with random numbers."""
    shapes = build_without_weights(FAMILY, config).state_dict()
    return {
        name: torch.randn(tensor.shape, dtype=torch.bfloat16) for name, tensor in shapes.items()
    }


def _memory(name: str, run: Callable[[], Any], rounds: int) -> Comparison:
    def above() -> float:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # reused free memory would hide new allocations
        held: list[Any] = []
        peak = peak_above(lambda: held.append(run()))
        return max(peak - _nbytes(held[0]) / 2**20, 1.0)

    peaks = [above() for _ in range(max(rounds, 2))]
    low, _, high = statistics.quantiles([BUDGET / peak for peak in peaks], n=4)
    peak = statistics.median(peaks)
    return Comparison(name, peak, BUDGET, BUDGET / peak, (low, high), 1.0, "MiB")


def _nbytes(result: Any) -> int:
    if isinstance(result, dict):
        return sum(tensor.nbytes for tensor in result.values())
    shards = (shard.data.nbytes for array in _arrays(result) for shard in array.addressable_shards)
    return sum(shards)


def _arrays(model: Model) -> list[jax.Array]:
    return [variable.get_value() for variable in named_parameters(model).values()]


if __name__ == "__main__":
    write_figures(str(__doc__).splitlines()[0], _compare_all)
