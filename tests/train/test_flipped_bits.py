"""Single flipped bits in a run's checkpoint: readers report them, or read the same values."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiers import examples
from tiny import TINY

from jaxllm.checkpointing.orbax_layout import DIGESTS, read_step
from jaxllm.errors import CheckpointError
from jaxllm.interop import load_pretrained, verify
from jaxllm.interop.formats import orbax
from jaxllm.params import split
from jaxllm.train import TrainConfig
from jaxllm.train.checkpoint import load_state, open_checkpoints
from jaxllm.train.checkpoint_arrays import open_step

RUN = TrainConfig(output="nowhere", steps=9, batch_size=8, seq_len=16, model=TINY)

Reader = Callable[[Path], Any]  # reads a step as plain data and arrays


@pytest.fixture(scope="module")
def step(saved_model, state, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    with open_checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(state, RUN, saved_model, {"train_tokens": "ab"})
    return folder / "3"


@pytest.fixture(scope="module")
def readers(state) -> dict[str, Reader]:
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )

    def resume(step: Path) -> Any:
        about = {k: v for k, v in read_step(step, "run", "data").about.items() if k != DIGESTS}
        return about, load_state(step, abstract)

    def load(step: Path) -> Any:
        model = load_pretrained(step)
        return repr(model.config), split(model)[1]

    def stream(step: Path) -> Any:
        model, arrays = orbax.open_step(step)
        return repr(model.config), {name: a.read(a.whole) for name, a in arrays.items()}

    def handover(step: Path) -> Any:
        about = {k: v for k, v in read_step(step).about.items() if k != DIGESTS}
        return about, {" ".join(key): array.read() for key, array in open_step(step).items()}

    return {"resume": resume, "load": load, "stream": stream, "handover": handover}


def as_bits(read: Any) -> tuple[Any, list[bytes]]:
    about, arrays = read
    return about, [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays)]


def flip(file: Path, byte: int, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1 << bit
    file.write_bytes(content)


def is_detected(read: Reader, step: Path, expected: Any) -> bool:
    """Whether a reader reports the damage; fails if it does not and reads other values."""
    try:
        found = as_bits(read(step))
    except CheckpointError:
        return True
    assert found == expected
    return False


@pytest.mark.cases(2, exhaustive=1)
@pytest.mark.parametrize("flips", examples([6, 200], 6))
@pytest.mark.parametrize("reader", ["resume", "load", "stream", "handover"])
def test_no_flipped_bit_is_silent(step, readers, reader, flips):
    read = readers[reader]
    expected = as_bits(read(step))
    files = [file for file in sorted(step.rglob("*")) if file.is_file()]
    bits = [(file, byte) for file in files for byte in range(file.stat().st_size)]
    rng, detected = random.Random(flips), 0
    for file, byte in rng.sample(bits, flips):
        bit = rng.randrange(8)
        flip(file, byte, bit)
        try:
            detected += is_detected(read, step, expected)
        except Exception as error:
            raise AssertionError(f"bit {bit} of byte {byte} of {file.relative_to(step)}") from error
        finally:
            flip(file, byte, bit)
    assert as_bits(read(step)) == expected
    assert 0 < detected <= flips


@pytest.mark.parametrize("item", ["model", "optimizer"])
def test_verify_counts_the_damaged_arrays(step, item):
    """All arrays are judged, the moments of the optimizer too, and the others are sound."""
    files = sorted((step / item / "ocdbt.process_0" / "d").iterdir())
    largest = max(files, key=lambda file: file.stat().st_size)
    assert verify(step).ok
    flip(largest, largest.stat().st_size // 2, 2)
    try:
        found = verify(step)
    finally:
        flip(largest, largest.stat().st_size // 2, 2)
    assert [item in problem for problem in found.problems] == [True]
    assert "1 damaged arrays" in found.summary
    assert found.differing_bits == 0
