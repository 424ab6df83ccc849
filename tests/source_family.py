"""Shared tests of the source-system families: outputs, gradients, weights and config."""

import copy
import json
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
from source_cases import save, write_fields
from tiers import examples
from tiny import relative_l2

from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.models import Model
from jaxllm.params import named_parameters, split

TOLERANCE = 1e-5  # relative L2, float32


class Built(NamedTuple):
    """The fields of a config file, the reference made of them, and the folder that it saved."""

    fields: dict[str, Any]
    reference: torch.nn.Module
    folder: Path


class Inputs(NamedTuple):
    """Positional arguments of a call, and the masks that only the JAX model takes."""

    arrays: list[np.ndarray]
    masks: Mapping[str, np.ndarray] = {}


@jax.jit
def run(model, arrays, masks):
    out = model(*arrays, **masks)
    return out.logits, out.aux_loss


def arrays_of(model: Model) -> dict[str, np.ndarray]:
    """The parameters of ours by name."""
    return {name: np.asarray(v.get_value()) for name, v in named_parameters(model).items()}


class SourceFamily:
    """The tests of a family; a subclass says its cases and what its models are called with."""

    cases: Mapping[str, Mapping[str, Any]]  # fields of config files; before a slash: model_type
    format: str
    buffer: str  # the end of the name of a buffer that is computed anew
    relu_inputs = ""  # the end of the names of modules whose outputs enter a ReLU; "": none

    def inputs(self, fields: Mapping[str, Any], seed: int = 1) -> Inputs:
        """Random inputs of the model of these fields."""
        raise NotImplementedError

    def scale_like(self, name: str, fields: Mapping[str, Any]) -> str:
        """The parameter whose gradient says how small that of `name` is."""
        # A bias of keys adds the same to all scores of a query: its gradient is rounding alone.
        return name.replace("k_proj.bias", "q_proj.bias")

    def keeps(self, written: dict[str, Any], fields: dict[str, Any]) -> bool:
        """Whether a config that was written says what was read."""
        return written == fields

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            params = examples(self.cases, next(iter(self.cases)))
            metafunc.parametrize("case", params, indirect=True, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, request, tmp_path_factory) -> Built:
        folder = tmp_path_factory.mktemp("original")
        fields = {"model_type": request.param.partition("/")[0], **cls.cases[request.param]}
        return Built(fields, write_fields(fields, folder), folder)

    @pytest.mark.cases(1, exhaustive=2)
    def test_outputs_and_losses_are_those_of_the_reference(self, case):
        inputs = self.inputs(case.fields)
        with torch.no_grad():
            expected = case.reference(*map(torch.tensor, inputs.arrays)).numpy()
        out, loss = run(load_pretrained(case.folder), *inputs)
        assert relative_l2(out, expected) <= TOLERANCE
        theirs = float(getattr(case.reference, "aux_loss", 0.0))
        assert float(loss) == pytest.approx(theirs, rel=TOLERANCE)

    @pytest.mark.cases(1, exhaustive=2)
    def test_gradients_are_those_of_the_reference(self, case, tmp_path):
        """Rules only move numbers, so a gradient is read as weights are; theirs is of float64."""
        exact = copy.deepcopy(case.reference).double()
        drawn = (self.inputs(case.fields, seed) for seed in count(1))
        arrays, masks = next(inputs for inputs in drawn if self.is_smooth(exact, inputs))
        out = exact(*map(as_float64, arrays))
        weights = np.random.default_rng(2).standard_normal(out.shape)
        loss = (out * torch.tensor(weights)).sum() + 100 * getattr(exact, "aux_loss", 0.0)
        loss.backward()
        with torch.no_grad():
            for parameter in exact.parameters():
                given = parameter.grad
                parameter.copy_(torch.zeros_like(parameter) if given is None else given)
        save(exact.float(), case.fields, tmp_path)
        expected = arrays_of(load_pretrained(tmp_path))
        bind, params = split(load_pretrained(case.folder))

        def our_loss(params):
            out = bind(params)(*arrays, **masks)
            return (out.logits * weights).sum() + 100 * out.aux_loss

        found = arrays_of(bind(jax.jit(jax.grad(our_loss))(params)))
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            error = np.linalg.norm(gradient - expected[name])
            scale = expected[self.scale_like(name, case.fields)]
            assert error <= TOLERANCE * np.linalg.norm(scale), name

    def is_smooth(self, exact: torch.nn.Module, inputs: Inputs) -> bool:
        """Whether no number is so near the kink of a ReLU that rounding decides on its gradient."""
        entering = [
            module
            for name, module in exact.named_modules()
            if self.relu_inputs and name.endswith(self.relu_inputs)
        ]
        found: list[float] = [np.inf]
        hooks = [
            module.register_forward_hook(lambda _, __, x: found.append(x.abs().min().item()))
            for module in entering
        ]
        with torch.no_grad():
            exact(*map(as_float64, inputs.arrays))
        for hook in hooks:
            hook.remove()
        return min(found) > 5e-6  # float32 is off by up to 2e-6 there

    def test_there_and_back_no_bit_differs(self, case, tmp_path):
        save_pretrained(load_pretrained(case.folder), tmp_path / "out")
        written = json.loads((tmp_path / "out" / "config.json").read_text())
        assert self.keeps(written, case.fields)
        theirs, ours = (
            torch.load(path / "state_dict.pth", weights_only=True)
            for path in (case.folder, tmp_path / "out")
        )
        assert theirs.keys() == ours.keys()
        for name, tensor in theirs.items():
            if name.endswith(self.buffer):  # of angles up to the length of a sequence
                torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-5)
            else:
                assert torch.equal(ours[name], tensor), name

    def test_the_config_comes_back_without_its_origin(self, case, tmp_path):
        model = load_pretrained(case.folder)
        model.origin = None
        save_pretrained(model, tmp_path / "out", format=self.format)
        assert load_pretrained(tmp_path / "out").config == model.config


def as_float64(array: np.ndarray) -> torch.Tensor:
    """Vectors in float64; tokens stay whole numbers."""
    tensor = torch.tensor(array)
    return tensor.double() if tensor.is_floating_point() else tensor
