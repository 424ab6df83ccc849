"""Any box of an array can be read, wherever the array lies; its bytes come in C order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiers import examples

from jaxllm.errors import NarrowingError
from jaxllm.interop.formats import lazy_tensor
from jaxllm.interop.formats.lazy_tensor import (
    TensorSource,
    cast,
    concatenate_rows,
    find_overflows,
    from_array,
    from_jax,
    transfer_tensor,
)
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.rules.boxes import box_shape, slices
from jaxllm.interop.rules.rule import Rule
from jaxllm.numerics.narrowing import Zeroed
from jaxllm.sharding import spans_processes

ARRAY = np.arange(60, dtype=np.float32).reshape(3, 4, 5)


def random_array(shape: tuple[int, ...], spec: tuple) -> jax.Array:
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    array = np.random.default_rng(0).standard_normal(shape).astype(jnp.bfloat16)
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))


SPECS = {
    "none": (),
    "one": (None, "a"),
    "two": ("b", "a"),
    "major and minor": (("a", "b"), None),
    "last": (None, None, "b"),
}


@pytest.mark.parametrize("spec", examples(SPECS, "major and minor"))
def test_any_box_of_a_sharded_array_is_read(spec):
    array = random_array((8, 12, 6), SPECS[spec])
    whole = np.asarray(array)
    source = from_jax(array)
    assert (source.dtype, source.shape) == (whole.dtype, whole.shape)
    rng = np.random.default_rng(1)
    for _ in range(40):
        box = [tuple(sorted(rng.integers(0, size + 1, 2))) for size in whole.shape]
        assert source.read(box).tobytes() == whole[slices(box)].tobytes()
        gathered = lazy_tensor._gather(array, box)
        assert gathered.tobytes() == whole[slices(box)].tobytes()
    assert not spans_processes(array)


def test_device_slices_out_the_requested_box():
    """As on an accelerator, from which only the box may be transferred to the host."""
    data = random_array((8, 12, 6), ()).addressable_data(0)
    cut = lazy_tensor._cutter((1, 5, 6))(data, [3, 2, 0])
    assert cut.shape == (1, 5, 6)
    assert np.asarray(cut).tobytes() == np.asarray(data)[3:4, 2:7].tobytes()


@pytest.mark.parametrize("max_bytes", [1, 4, 20, 100, 10_000])
def test_payload_is_the_array_in_c_order(max_bytes):
    chunks = list(from_array(ARRAY).payload(max_bytes))
    assert b"".join(chunks) == ARRAY.tobytes()
    assert max(chunk.nbytes for chunk in chunks) <= max(max_bytes, 4)


@pytest.mark.parametrize("max_bytes", [4, 20, 100, 10_000])
def test_chunks_may_be_assembled_one_after_the_other_in_given_memory(max_bytes):
    rule, sizes = Rule("w : F D", "w : D F"), {"F": 4, "D": 5}
    transferred = transfer_tensor(rule.exporting(sizes), {}, {"w": from_array(ARRAY[0].T)})
    fused = concatenate_rows([from_array(ARRAY[:1]), from_array(ARRAY[1:])])
    cast = from_array(ARRAY).astype(np.dtype(jnp.bfloat16))
    room = np.empty(max(max_bytes, 4), np.uint8)
    for source in (transferred, fused, cast, from_array(ARRAY)):
        given = b"".join(bytes(chunk) for chunk in source.payload(max_bytes, room))
        assert given == b"".join(source.payload(max_bytes))
    (chunk,) = transferred.payload(10_000, room) if max_bytes == 10_000 else (room,)
    assert np.shares_memory(np.asarray(chunk), room)


def test_source_that_differs_from_its_declaration_is_rejected():
    lying = TensorSource(np.dtype(np.float32), (3, 4, 5), lambda box: ARRAY[:1])
    with pytest.raises(CheckpointError, match=r"declared as float32\[3, 4, 5\], but read as"):
        list(lying.payload(10_000))


def test_cast_rounds_to_nearest():
    source = from_array(ARRAY / 3).astype(np.dtype(jnp.bfloat16))
    expected = (ARRAY / 3).astype(jnp.bfloat16)
    assert b"".join(source.payload(64)) == expected.tobytes()
    assert source.astype(source.dtype) is source


def test_parts_are_concatenated_along_rows():
    whole = concatenate_rows([from_array(ARRAY[:1]), from_array(ARRAY[1:])])
    assert whole.shape == ARRAY.shape
    for box in ([(0, 3), (0, 4), (0, 5)], [(0, 2), (1, 3), (2, 3)], [(2, 3), (0, 4), (0, 1)]):
        assert whole.read(box).tobytes() == ARRAY[slices(box)].tobytes()
        out = np.zeros(box_shape(box), np.float32)
        whole.fill(box, out)
        assert out.tobytes() == ARRAY[slices(box)].tobytes()


def test_transferred_tensor_reads_boxes_through_its_rule():
    rule, sizes = Rule("w : F D", "w : D F"), {"F": 4, "D": 5}
    source = transfer_tensor(rule.exporting(sizes), {}, {"w": from_array(ARRAY[0].T)})
    assert source.shape == (4, 5)
    assert source.read([(1, 3), (2, 5)]).tobytes() == ARRAY[0, 1:3, 2:5].tobytes()
    out = np.zeros((2, 3), np.float32)
    source.fill([(1, 3), (2, 5)], out)
    assert out.tobytes() == ARRAY[0, 1:3, 2:5].tobytes()
    narrow = np.zeros((2, 3), jnp.bfloat16)
    source.astype(narrow.dtype).fill([(1, 3), (2, 5)], narrow)
    assert narrow.tobytes() == ARRAY[0, 1:3, 2:5].astype(jnp.bfloat16).tobytes()


def test_numbers_that_become_zero_are_counted_once_a_box():
    small = np.array([[1e-9, 0, 1], [-1e-8, 2, 1e-7]], np.float32)
    zeroed = Zeroed(np.dtype(np.float16))
    source = from_array(small).astype(zeroed.dtype, zeroed, "w")
    for max_bytes in (12, 12):  # as a conversion that verifies what it wrote
        list(source.payload(max_bytes))
    assert zeroed.describe().endswith("\n  w: 2 of 6")


def test_a_cast_that_overflows_is_refused():
    given = np.array([1.5, -7e4, 1e38], np.float32)
    with pytest.raises(NarrowingError, match="overflow: 2 beyond"):
        cast(given, np.dtype(np.float16))
    np.testing.assert_array_equal(cast(given[:1], np.dtype(np.float16))[0], [1.5])


@pytest.mark.parametrize("chunk_bytes", [4, 1 << 20])
def test_overflows_are_counted_by_array(chunk_bytes):
    wide = np.ones((3, 4), np.float32)
    wide[0, 1], wide[2, 3], wide[1, 1] = 7e4, -1e5, np.inf
    sources = {"a": from_array(wide), "b": from_array(np.ones(3, np.float32))}
    assert find_overflows(sources, np.dtype(np.float16), chunk_bytes) == [
        "overflow: 2 beyond 65504, the largest number of float16",
        "a: 2 of 12, up to 100000 in magnitude",
    ]
    assert find_overflows(sources, np.dtype("bfloat16"), chunk_bytes) == []
