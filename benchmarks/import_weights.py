"""Reading a 1.5 GB Llama, bfloat16 in 3 files, onto 8 virtual CPU devices: ours against less.

`load_pretrained` transposes, splits over the devices and stacks the layers on the way. The peers
need not: a plain read of the same files into memory, `safetensors.flax.load_file` and
transformers, whose arrays are as they are stored. The files come from the disk each time.
"""

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from large_llama import LLAMA, save_large_llama
from memory import peak_above
from side_by_side import Comparison, compare

from jaxllm.interop import load_pretrained
from jaxllm.interop.hugging_face import require_torch
from jaxllm.params import named_parameters
from jaxllm.train import make_mesh

BUDGET = 256  # MiB of host memory above the arrays
MAX_SHARD = 520_000_000


def run(rounds: int) -> list[Comparison]:
    """In a process of its own, since the number of devices is fixed when jax starts."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        command = [sys.executable, __file__, "--rounds", str(rounds), "--json", str(figures)]
        subprocess.run(command, check=True, env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"})
        return [Comparison(**row) for row in json.loads(figures.read_text())]


def main() -> None:
    """Measures, and writes the figures to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="(%(default)s)")
    parser.add_argument("--json", required=True, help="file for the figures")
    parser.add_argument("--folder", help="where to put the weights; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = Path(folder) / "llama"
        save_large_llama(LLAMA, source, MAX_SHARD)
        rows = [row._asdict() for row in _compare_all(source, arguments.rounds)]
    Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n")


def _compare_all(source: Path, rounds: int) -> Iterator[Comparison]:
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
        "safetensors.flax.load_file": (lambda: _load_files(files), 0.67),
        # Leaves the weights in the pages of the files, which are nobody's memory.
        "transformers": (lambda: _transformers(source), 0.5),
    }
    ours = _from_disk(files, load)
    for name, (theirs, target) in peers.items():
        what = f"import 1.5 GB onto 8 devices, against {name}"
        yield compare(what, ours, _from_disk(files, theirs), rounds=rounds, target=target)


def _memory(load: Callable[[], list[jax.Array]], rounds: int) -> Comparison:
    def above() -> float:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is taken now
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
    """Has the system forget the files before it reads them."""

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
    # It maps the files: only what is touched is read.
    return [float(parameter.detach().view(-1)[::2048].sum()) for parameter in model.parameters()]


if __name__ == "__main__":
    main()
