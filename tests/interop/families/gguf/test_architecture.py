"""Architectures: names with the numbers of layers and experts, and layouts of tensors."""

from pathlib import Path

import numpy as np

from jaxllm.interop.families.gguf.architecture import Architecture
from jaxllm.interop.formats.gguf.quantized_tensor import QuantizedTensor

ONE = Architecture(
    model_type="one",
    fields={"width": "hidden_size", "heads": "num_attention_heads"},
    names={
        "embd": "embed",
        "blk.#.q": "layers.#.q_proj",
        "blk.#.norm": "layers.#.norm",
        "blk.#.up": "layers.#.up",
        "blk.#.exps": "layers.#.experts.@.w",
        "blk.#.old.@": "layers.#.experts.@.w",
    },
    constants={"act": "silu"},
    interleaved={"blk.#.q": "num_attention_heads"},
    shifted=("norm",),
    transposed=("blk.#.up",),
    complete=lambda config: {"twice": 2 * config["hidden_size"]},
)
CONFIG = {"num_attention_heads": 4}


def tensor(name, *shape):
    return QuantizedTensor(name, np.dtype(np.float32), shape, Path("unused"), 0)


def rename(*given):
    problems = []
    found = ONE.rename({one.name: one for one in given}, CONFIG, problems)
    assert {one.name for one in found.values()} == found.keys()
    return found, problems


def test_fields_are_renamed_and_what_remains_is_left():
    given = {"width": 8, "heads": 4, "vocab_size": 9, "other": 1}
    assert ONE.read_fields(given) == {
        "hidden_size": 8,
        "num_attention_heads": 4,
        "act": "silu",
        "twice": 16,
    }
    assert given == {"other": 1}


def test_tensors_get_the_layout_of_their_place():
    given = (tensor("blk.11.q.weight", 32, 5), tensor("blk.0.norm.weight", 32))
    given += (tensor("blk.2.up.weight", 3, 5), tensor("blk.2.up.bias", 3), tensor("embd.weight", 7))
    found, problems = rename(*given)
    assert not problems
    assert found["layers.11.q_proj.weight"].head_dim == 8
    assert found["layers.0.norm.weight"].added == 1
    assert found["layers.2.up.weight"].shape == (5, 3)
    assert found["layers.2.up.weight"].element_strides == (1, 5)
    assert found["layers.2.up.bias"].shape == (3,)
    assert found["embed.weight"].head_dim == 0


def test_experts_in_one_tensor_and_in_one_each_have_the_same_names():
    together, problems = rename(tensor("blk.3.exps.weight", 2, 6, 5))
    each, more = rename(tensor("blk.3.old.0.weight", 6, 5), tensor("blk.3.old.1.weight", 6, 5))
    assert not problems + more
    assert together.keys() == each.keys()
    assert [(one.shape, one.first) for one in together.values()] == [((6, 5), 0), ((6, 5), 30)]


def test_tensors_without_a_place_are_named():
    _, problems = rename(tensor("blk.0.strange.weight", 3), tensor("blk.0.q.scale", 3))
    assert problems == [
        "tensor blk.0.strange.weight has no place in a one model",
        "tensor blk.0.q.scale has no place in a one model",
    ]
