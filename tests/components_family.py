"""Shared tests of the components families: vectors in and out, experts, meshes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
from source_cases import write_fields
from source_family import Inputs, SourceFamily, arrays_of, run
from tiers import examples
from tiny import relative_l2

from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.models import with_scanned_layers
from jaxllm.params import named_parameters
from jaxllm.train import make_mesh

TOLERANCE = 1e-5  # relative L2, float32
LAYERS = {
    **{"input_dim": 3, "output_dim": 5, "embed_dim": 48, "ffn_latent_dim": 56, "num_heads": 6},
    "max_seq_len": 160,
}
DENSE = {"embed_dim": 48, "latent_dim": 56}
MOE = {**DENSE, "use_moe": True, "num_experts": 4, "alpha": 0.3}
MESHES = [{"fsdp": 4, "tensor": 2}, {"expert": 2, "data": 4}]
ROOMY = 2 * 160  # a capacity that nothing exceeds
# Some experts are full before all tokens have come.
CROWDED = {"attention_type": "mqa", "ffn_config": {**MOE, "capacity": 55, "topk": 2}}


class ComponentsFamily(SourceFamily):
    """The tests of a family of the components; a subclass says its cases and lengths."""

    format = "components"
    buffer = "pe.pe"
    lengths: tuple[int, ...]  # of a sequence, or of a source and a target
    sizes: Mapping[str, Any]  # that the family has besides those of layers

    def inputs(self, fields, seed=1):
        rng = np.random.default_rng(seed)
        shapes = [(2, length, 3) for length in self.lengths]
        return Inputs([rng.standard_normal(shape).astype(np.float32) for shape in shapes])

    def scale_like(self, name, fields):
        if fields.get("ffn_config", {}).get("topk") == 1:
            # The only choice weighs one whatever the router says: rounding alone as well.
            name = name.replace("router", "up_proj")
        return super().scale_like(name, fields)

    def test_experts_have_a_loss_and_networks_have_none(self, case):
        _, loss = run(load_pretrained(case.folder), *self.inputs(case.fields))
        assert (float(loss) > 0) == case.fields.get("ffn_config", {}).get("use_moe", False)

    @pytest.fixture(scope="class")
    @classmethod
    def crowded(cls, tmp_path_factory):
        """The folder of a model with experts, and its fields."""
        folder = tmp_path_factory.mktemp("crowded")
        model_type = next(iter(cls.cases)).partition("/")[0]
        fields = {"model_type": model_type, **LAYERS, **cls.sizes, **CROWDED}
        write_fields(fields, folder)
        return folder, fields

    def test_native_checkpoints_hold_it(self, crowded, tmp_path):
        model = load_pretrained(crowded[0])
        save_pretrained(model, tmp_path / "native", format="native")
        again = load_pretrained(tmp_path / "native")
        assert again.config == model.config
        kept = str(tmp_path / "native" / "origin")
        assert again.origin == dataclasses.replace(model.origin, directory=kept)
        for name, array in arrays_of(again).items():
            np.testing.assert_array_equal(array, arrays_of(model)[name])

    @pytest.mark.usefixtures("really_compiling")
    @pytest.mark.parametrize("axes", examples(MESHES, MESHES[0]), ids=str)
    def test_on_a_mesh_and_layer_by_layer_it_computes_the_same(self, axes, crowded):
        folder, fields = crowded
        inputs, model, mesh = self.inputs(fields), load_pretrained(folder), make_mesh(**axes)
        expected = run(model, *inputs)
        sharded = load_pretrained(folder, mesh=mesh)
        if "expert" in axes:
            kernels = (v for name, v in named_parameters(sharded).items() if "up_proj.k" in name)
            assert any("expert" in kernel.get_value().sharding.spec for kernel in kernels)
        with jax.set_mesh(mesh):
            found = run(sharded, *inputs)
        for out in (found, run(with_scanned_layers(model, False), *inputs)):
            assert relative_l2(out[0], expected[0]) <= TOLERANCE
            assert float(out[1]) == pytest.approx(float(expected[1]), rel=TOLERANCE)
