"""Orbax reads a native checkpoint that was written unit by unit, in any order."""

import chex
import numpy as np
from tiny import random_model

from jaxllm.interop.formats import orbax
from jaxllm.interop.formats.lazy_tensor import from_jax
from jaxllm.interop.formats.orbax_writer import OrbaxWriter
from jaxllm.params import named_parameters


def test_units_can_be_written_in_any_order_and_after_an_interruption(tmp_path):
    model = random_model(head_dim=8, num_layers=1)
    arrays = {name: v.get_value() for name, v in named_parameters(model).items()}

    def writer() -> OrbaxWriter:
        return OrbaxWriter(model.config, None, {name: from_jax(a) for name, a in arrays.items()})

    first, done = writer(), []
    assert sum(first.units.values()) == sum(array.nbytes for array in arrays.values())
    first.begin(tmp_path / "out")
    units = list(first.units)
    digests = {unit: first.write(tmp_path / "out", unit, 1, done.append) for unit in units[::-2]}
    assert not orbax.is_native(tmp_path / "out")  # not complete

    second = writer()
    assert second.plan() == first.plan()
    second.begin(tmp_path / "out")
    for unit, digest in digests.items():
        assert second.written(tmp_path / "out", unit) == digest.sha256
    for unit in units:
        if unit not in digests:
            digests[unit] = second.write(tmp_path / "out", unit, 1, done.append)
    second.finish(tmp_path / "out", digests)
    assert sum(done) == sum(first.units.values())
    again = orbax.load(tmp_path / "out")
    found = {name: np.asarray(v.get_value()) for name, v in named_parameters(again).items()}
    chex.assert_trees_all_equal(found, {name: np.asarray(a) for name, a in arrays.items()})
