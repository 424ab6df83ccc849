"""Adapters as plain data: ranks, what was trained in full, and attaching to a model."""

import numpy as np
from tiny import TINY

from jaxllm.interop.adapters.adapter import Adapter
from jaxllm.models import build_abstract
from jaxllm.params import parameter_shapes


def test_an_adapter_attaches_to_its_model():
    name = "layers.0:3.attn.q_proj"
    arrays = {
        f"{name}.lora.a": np.zeros((3, 32, 5), np.float32),
        f"{name}.lora.b": np.zeros((3, 5, 4, 16), np.float32),
        "embed.embedding": np.zeros((96, 32), np.float32),
    }
    adapter = Adapter(scales={name: 0.5}, arrays=arrays)
    assert adapter.ranks == {name: 5}
    assert list(adapter.full) == ["embed.embedding"]
    shapes = parameter_shapes(adapter.attach(build_abstract(TINY)))
    assert {key: x.shape for key, x in arrays.items()}.items() <= shapes.items()
