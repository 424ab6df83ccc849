"""State dicts in memory: any box of any kind of tensor is read, and what has none is named."""

import ml_dtypes
import numpy as np
import pytest
import torch

from jaxllm.interop import CheckpointError
from jaxllm.interop.formats.lazy_tensor import from_stored
from jaxllm.interop.in_memory.state_dict import read_state_dict
from jaxllm.interop.loading.streaming.chunk_reader import Reader, chunks
from jaxllm.interop.rules.boxes import slices

DRAWN = np.random.default_rng(0).standard_normal((6, 10))
BOX = [(1, 5), (2, 9)]
# Values of a state dict, each with the numbers that it holds.
VALUES = {
    "float32": torch.tensor(DRAWN, dtype=torch.float32),
    "float64": torch.tensor(DRAWN),
    "float16": torch.tensor(DRAWN, dtype=torch.float16),
    "bfloat16": torch.tensor(DRAWN, dtype=torch.bfloat16),
    "parameter": torch.nn.Parameter(torch.tensor(DRAWN)),
    "transposed": torch.tensor(DRAWN.T.copy()).t(),
    "expanded": torch.tensor(DRAWN[0]).expand(6, 10),
    "strided": torch.tensor(np.repeat(DRAWN, 3, axis=1))[:, ::3],
    "numpy": DRAWN,
    "numpy reversed": DRAWN[::-1],
    "numpy bfloat16": DRAWN.astype(ml_dtypes.bfloat16),
}


def numbers_of(value: torch.Tensor | np.ndarray) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value.astype(np.float64)
    return value.detach().double().numpy()


@pytest.mark.parametrize("kind", VALUES)
def test_any_box_is_read(kind):
    value = VALUES[kind]
    tensor = read_state_dict({"w": value})["w"]
    assert (tensor.name, tensor.shape) == ("w", (6, 10))
    assert tensor.dtype.name == str(value.dtype).removeprefix("torch.")
    for read in (tensor.read(BOX), from_stored(tensor).read(BOX), tensor.read()[slices(BOX)]):
        assert read.dtype == tensor.dtype
        np.testing.assert_array_equal(read.astype(float), numbers_of(value)[slices(BOX)])
    part = tensor.rows("w#q", 2, 3)
    assert (part.name, part.shape, part.nbytes) == ("w#q", (3, 10), 30 * tensor.dtype.itemsize)
    np.testing.assert_array_equal(part.read().astype(float), numbers_of(value)[2:5])


@pytest.mark.parametrize("kind", VALUES)
def test_chunks_that_are_streamed_are_views(kind):
    tensor, address = read_state_dict({"w": VALUES[kind]})["w"], set()
    found = np.full((6, 10), np.nan)
    with Reader() as reader:
        for box in chunks(tensor, 8 * tensor.dtype.itemsize):
            part = reader.read(tensor, box, [box])
            assert part.size <= 8
            found[slices(box)] = part
            address.add(part.ctypes.data)
    np.testing.assert_array_equal(found, numbers_of(VALUES[kind]))
    data = VALUES[kind]
    assert (data.ctypes.data if isinstance(data, np.ndarray) else data.data_ptr()) in address


def test_a_scalar_is_read():
    for value in (torch.tensor(3.0), np.array(3.0)):
        tensor = read_state_dict({"step": value})["step"]
        for read in (tensor.read(), tensor.read([])):
            assert isinstance(read, np.ndarray)
            assert (tensor.shape, read.shape, float(read)) == ((), (), 3.0)


def test_wrappers_and_trainers_dictionaries_are_removed(caplog):
    inner = {"module._orig_mod.a._fsdp_wrapped_module.w": torch.zeros(2), "module.count": 3}
    found = read_state_dict({"model": inner, "step": 5}, "MyModel")
    assert [(name, tensor.name) for name, tensor in found.items()] == [("a.w", "a.w")]
    assert "MyModel: only the entry 'model' is read, not step" in caplog.text


def test_every_tensor_without_numbers_is_named_at_once():
    state = {
        "layers.0.w": torch.zeros(2, device="meta"),
        "layers.1.w": torch.zeros(2, device="meta"),
        "b": torch.eye(2).to_sparse(),
        "c": np.array(["text"]),
        4: torch.zeros(2),
        "fine": torch.zeros(2),
    }
    with pytest.raises(CheckpointError) as raised:
        read_state_dict(state)
    assert str(raised.value).splitlines() == [
        "state dict:",
        "  layers.{0..1}.w is on the meta device, which holds no numbers: load the weights first",
        "  b is of layout torch.sparse_coo: make it dense first",
        "  c is of dtype <U4, which PyTorch does not have",
        "  4 is a int, not the name of a tensor",
    ]


def test_names_that_collide_without_prefixes_are_refused():
    with pytest.raises(CheckpointError, match=r"module\.w and w are both w|w and module\.w"):
        read_state_dict({"module.w": torch.zeros(1), "w": torch.zeros(1)})


def test_a_dictionary_without_tensors_is_refused():
    message = "no arrays of NumPy; its entries are of the types int, float: epoch, lr"
    with pytest.raises(CheckpointError, match=message):
        read_state_dict({"epoch": 1, "lr": 0.1})
