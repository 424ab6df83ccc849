"""Export of a 1.5 GB Llama, bfloat16, from 8 virtual CPU devices: jaxllm against simpler writers.

`save_pretrained` gathers shards, transposes and unstacks layers while it writes. The peers do not
have to: a plain write of the same bytes, `safetensors.flax.save_file` of the arrays as they are,
and transformers with the model in PyTorch. Times include syncing the files to disk; where that
leaves the disk to decide, another row writes to a file system in memory.
"""

import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
from large_llama import LLAMA
from memory import peak_above
from own_process import run_script, write_figures
from side_by_side import Comparison, compare

from jaxllm.config import NumericsConfig, with_fields
from jaxllm.interop import save_pretrained
from jaxllm.interop.formats.file_writer import sync
from jaxllm.interop.reference.transformers_models import open_exported, require_torch
from jaxllm.models import Model
from jaxllm.params import initialize, named_parameters
from jaxllm.train import make_mesh

IN_MEMORY = Path("/dev/shm")  # Linux's file system in memory
BUDGET = 256  # MiB of host memory above the arrays
TARGETS = {  # minimum speed relative to each peer, in the order of the peers below
    "a plain write of the bytes": 0.9,
    "safetensors.flax.save_file": 1 / 2,
    "transformers": 1 / 2,
}


def run(rounds: int) -> list[Comparison]:
    """Measures in a process of its own, with 8 virtual devices."""
    return run_script(__file__, rounds)


def _compare_all(folder: Path, rounds: int) -> Iterator[Comparison]:
    config = with_fields(LLAMA, numerics=NumericsConfig(param_dtype="bfloat16", dtype="bfloat16"))
    model = initialize(config, make_mesh(fsdp=4, tensor=2), 0)
    jax.block_until_ready(jax.tree.leaves(model))
    export = partial(save_pretrained, model)
    ours = _written(folder / "ours", export)
    yield _memory(ours, rounds)
    source = folder / "ours"
    peers = [_plain_write(source), _save_file(model), _transformers(source)]
    for theirs, (name, target) in zip(peers, TARGETS.items(), strict=True):
        what = f"export 1.5 GB from 8 devices, against {name}"
        peer = _written(folder / "theirs", theirs)
        yield compare(what, ours, peer, rounds=rounds, target=target)
    if not IN_MEMORY.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as place:
        shutil.rmtree(folder / "theirs")
        name, target = next(iter(TARGETS.items()))
        what = f"export 1.5 GB from 8 devices to memory, against {name}"
        pair = (_written(Path(place) / "files", write) for write in (export, peers[0]))
        yield compare(what, *pair, rounds=rounds, target=target)


def _memory(ours: Callable[[], None], rounds: int) -> Comparison:
    ours()
    peaks = [max(peak_above(ours), 1.0) for _ in range(max(rounds, 2))]
    low, _, high = statistics.quantiles([BUDGET / peak for peak in peaks], n=4)
    peak = statistics.median(peaks)
    name = "export 1.5 GB from 8 devices, host memory above the arrays against a budget"
    return Comparison(name, peak, BUDGET, BUDGET / peak, (low, high), 1.0, "MiB")


def _written(path: Path, write: Callable[[Path], object]) -> Callable[[], None]:
    """Returns a function that writes a folder from scratch and syncs it to disk."""

    def run() -> None:
        shutil.rmtree(path, ignore_errors=True)
        write(path)
        for file in path.iterdir():
            sync(file)

    return run


def _plain_write(source: Path) -> Callable[[Path], None]:
    """Returns a function that writes the same files from memory, in chunks of 8 MiB."""
    data = {file.name: file.read_bytes() for file in source.iterdir()}

    def write(path: Path) -> None:
        path.mkdir()
        for name, content in data.items():
            with (path / name).open("wb") as stream:
                view = memoryview(content)
                for start in range(0, len(view), 8 << 20):
                    stream.write(view[start : start + (8 << 20)])

    return write


def _save_file(model: Model) -> Callable[[Path], None]:
    from safetensors.flax import save_file

    arrays = {name: variable.get_value() for name, variable in named_parameters(model).items()}

    def write(path: Path) -> None:
        path.mkdir()
        save_file(arrays, path / "model.safetensors")

    return write


def _transformers(source: Path) -> Callable[[Path], None]:
    _, transformers = require_torch()
    transformers.utils.logging.disable_progress_bar()
    theirs, _ = open_exported(source)
    return lambda path: theirs.save_pretrained(path, max_shard_size="5GB")


if __name__ == "__main__":
    write_figures(str(__doc__).splitlines()[0], _compare_all)
