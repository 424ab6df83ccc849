"""Import of a 1.5 GB Llama, bfloat16 in 3 files, onto 8 virtual CPU devices: jaxllm against peers.

`load_pretrained` transposes, shards and stacks layers while it reads. The peers do not have to: a
plain read of the same files into memory, and `safetensors.flax.load_file` and transformers, which
keep the stored layout. The files are evicted from the page cache before each read; where that
leaves the disk to decide, another row reads them from memory.
"""

import ctypes
import gc
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from large_llama import LLAMA, save_large_llama
from memory import peak_above
from own_process import run_script, write_figures
from side_by_side import Comparison, compare

from jaxllm.interop import load_pretrained
from jaxllm.interop.reference.transformers_models import require_torch
from jaxllm.params import named_parameters
from jaxllm.train import make_mesh

BUDGET = 256  # MiB of host memory above the arrays
MAX_SHARD = 520_000_000


def run(rounds: int) -> list[Comparison]:
    """Measures in a process of its own, with 8 virtual devices."""
    return run_script(__file__, rounds)


def _compare_all(folder: Path, rounds: int) -> Iterator[Comparison]:
    source = folder / "llama"
    save_large_llama(LLAMA, source, MAX_SHARD)
    files = sorted(source.glob("*.safetensors"))
    assert len(files) == 3
    mesh = make_mesh(fsdp=4, tensor=2)

    def load() -> list[jax.Array]:
        model = load_pretrained(source, mesh=mesh)
        arrays = [variable.get_value() for variable in named_parameters(model).values()]
        return jax.block_until_ready(arrays)

    yield _memory(load, rounds)
    peers: dict[str, tuple[Callable[[], object], float]] = {
        "a plain read of the files": (lambda: [file.read_bytes() for file in files], 0.67),
        "safetensors.flax.load_file": (lambda: _load_files(files), 1.3),
        # Memory-maps the files, so the weights do not count as memory of the process.
        "transformers": (lambda: _transformers(source), 1.0),
    }
    ours = _from_disk(files, load)
    for name, (theirs, target) in peers.items():
        what = f"import 1.5 GB onto 8 devices, against {name}"
        yield compare(what, ours, _from_disk(files, theirs), rounds=rounds, target=target)
    for name, (theirs, target) in peers.items():
        what = f"import 1.5 GB in the page cache onto 8 devices, against {name}"
        yield compare(what, load, theirs, rounds=rounds, target=target)


def _memory(load: Callable[[], list[jax.Array]], rounds: int) -> Comparison:
    def above() -> float:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # reused free memory would hide new allocations
        held: list[jax.Array] = []
        peak = peak_above(lambda: held.extend(load()))
        shards = [shard.data.nbytes for array in held for shard in array.addressable_shards]
        return max(peak - sum(shards) / 2**20, 1.0)

    peaks = [above() for _ in range(max(rounds, 2))]
    low, _, high = statistics.quantiles([BUDGET / peak for peak in peaks], n=4)
    peak = statistics.median(peaks)
    name = "import 1.5 GB onto 8 devices, host memory above the arrays against a budget"
    return Comparison(name, peak, BUDGET, BUDGET / peak, (low, high), 1.0, "MiB")


def _from_disk(files: list[Path], read: Callable[[], object]) -> Callable[[], None]:
    """Returns a function that evicts the files from the page cache and then reads them."""

    def run() -> None:
        for file in files:
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
        read()

    return run


def _load_files(files: list[Path]) -> list[dict[str, jax.Array]]:
    from safetensors.flax import load_file

    return jax.block_until_ready([load_file(file) for file in files])


def _transformers(source: Path) -> list[float]:
    torch, transformers = require_torch()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    # The files are memory-mapped: touching one element per page reads everything.
    return [float(parameter.detach().view(-1)[::2048].sum()) for parameter in model.parameters()]


if __name__ == "__main__":
    write_figures(str(__doc__).splitlines()[0], _compare_all)
