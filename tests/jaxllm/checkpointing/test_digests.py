"""Digests: the same on every mesh and in parts, and another one for every changed bit."""

import itertools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxllm.checkpointing import digests
from jaxllm.checkpointing.digests import (
    _device_sums,
    digest_arrays,
    digest_json,
    part_sums,
    to_text,
)
from jaxllm.sharding import named_sharding

DTYPES = [np.float32, ml_dtypes.bfloat16, np.float16, np.int8, np.bool_, np.int32, np.complex64]


def random_array(shape=(6, 4, 10), dtype=np.float32) -> np.ndarray:
    rng = np.random.default_rng(7)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    numbers = rng.standard_normal(shape) * 50
    if dtype == np.complex64:
        numbers = numbers + 1j * rng.standard_normal(shape)
    return numbers.astype(dtype)


def digest_of(array: np.ndarray) -> str:
    return to_text(part_sums(array, [(0, size) for size in array.shape], array.shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 4, 10), (240,), (), (0, 3)])
def test_devices_and_the_host_agree(dtype, shape):
    array = random_array(shape, dtype)
    on_device = jnp.asarray(array)
    assert digest_arrays({"x": on_device}) == {"x": digest_of(array)}
    assert to_text(np.asarray(_device_sums(on_device))) == digest_of(array)


def test_a_sharded_array_has_the_digest_of_the_whole():
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"))
    array = random_array((8, 12))
    sharded = jax.device_put(array, named_sharding("DF", array.shape, mesh))
    assert sharded.addressable_shards[0].data.shape == (4, 3)
    replicated = jax.device_put(array[0], named_sharding("F", array[0].shape, mesh))
    assert digest_arrays({"x": sharded, "y": replicated}) == {
        "x": digest_of(array),
        "y": digest_of(array[0]),
    }
    assert to_text(np.asarray(_device_sums(sharded))) == digest_of(array)


def test_parts_add_up_in_any_order():
    array = random_array()
    cuts = [[(0, 1), (1, 6)], [(0, 3), (3, 4)], [(0, 7), (7, 10)]]
    boxes = list(itertools.product(*cuts))[::-1]
    parts = [part_sums(array[tuple(slice(*b) for b in box)], box, array.shape) for box in boxes]
    assert to_text(np.sum(parts, axis=0, dtype=np.uint32)) == digest_of(array)


@pytest.mark.parametrize("size", [50, 25, 7, 1])  # of one dimension, two, three, or each element
def test_a_large_array_is_digested_in_blocks(size, monkeypatch):
    array = random_array()
    expected = digest_of(array)
    monkeypatch.setattr(digests, "BLOCK_WORDS", size)
    assert digest_of(array) == expected
    assert max(array[block].size for block in digests._blocks(array.shape)) <= size


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float64])
def test_every_flipped_bit_changes_both_sums(dtype):
    array = random_array((3, 5), dtype)
    seen = {digest_of(array)}
    for byte, bit in itertools.product(range(array.nbytes), range(8)):
        flipped = np.frombuffer(array.tobytes(), np.uint8).copy()
        flipped[byte] ^= 1 << bit
        seen.add(digest_of(flipped.view(dtype).reshape(array.shape)))
    assert len(seen) == len({digest[:8] for digest in seen}) == 1 + 8 * array.nbytes
    assert len({digest[8:] for digest in seen}) == 1 + 8 * array.nbytes


def test_exchanged_elements_rows_and_signs_change_the_digest():
    array = random_array((8, 8))
    others = [array[::-1], array.T, -array, np.roll(array, 1)]
    assert len({digest_of(np.ascontiguousarray(x)) for x in [array, *others]}) == 5
    zeros = np.zeros((8, 8), np.float32)
    assert digest_of(zeros) != digest_of(-zeros) != digest_of(np.zeros((8, 9), np.float32))


def test_the_digest_of_plain_data_survives_json():
    data = {"b": (1, 2.5), "a": {"x": None, "y": "é"}}
    assert digest_json(data) == digest_json({"a": {"y": "é", "x": None}, "b": [1, 2.5]})
    assert digest_json(data) != digest_json({**data, "b": [1, 2.25]})
