"""Checkpoints written by the original code, with the numbers that it computed from them.

They lie beside the repository. Where they are not, nothing is left to test here.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tiny import relative_l2

from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.interop.families import FAMILIES, Layout
from jaxllm.params import named_parameters, split, stacks

TOLERANCE = 1e-5  # relative L2, float32
FOLDER = Path(__file__).parents[2].parent / "shared" / "golden"
GOLDENS = [name for name in ("llama3_mp2", "tlama") if (FOLDER / name).is_dir()]
DERIVED = ("freq_cis", "rope.freqs")


def recorded(name: str) -> dict[str, np.ndarray]:
    return load_file(FOLDER / name / "io.safetensors")


def stored(folder: Path) -> dict[tuple[str, str], tuple]:
    """Dtype, shape and bits of every tensor in every file."""
    tensors = {}
    for file in sorted(folder.glob("*.pth")):
        for name, tensor in torch.load(file, weights_only=True, map_location="cpu").items():
            if torch.is_tensor(tensor) and not name.endswith(DERIVED):
                data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                tensors[file.name, name] = tensor.dtype, tuple(tensor.shape), data
    return tensors


def mean_loss(params: dict, bind, tokens: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy of `targets`, already shifted, as the original's forward pass has it."""
    logits = bind(params)(tokens).logits
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
    return -jnp.mean(picked)


def as_stored(model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is laid out as the parameters are, such as their gradients, by the stored names."""
    family = next(family for family in FAMILIES if family.name == model.origin.family)
    table = family.table(model.config, Layout(**json.loads(model.origin.layout)))
    tensors = {}
    for rule, sizes in table.bound(stacks(model)):
        transfer = rule.exporting(sizes)
        for name, index in transfer.target.names(sizes):
            out = np.empty(transfer.target.shape(sizes), np.float32)
            for piece in transfer.pieces(index, [(0, size) for size in out.shape]):
                transfer.copy(piece, arrays[piece.name], out)
            tensors[name] = out
    return tensors


if GOLDENS:

    @pytest.mark.parametrize("name", GOLDENS)
    def test_logits_are_the_recorded_ones(name):
        model = load_pretrained(FOLDER / name)
        logits = jax.jit(lambda model, tokens: model(tokens).logits)(
            model, recorded(name)["tokens"].astype(np.int32)
        )
        assert relative_l2(logits, recorded(name)["logits"]) <= TOLERANCE

    @pytest.mark.parametrize("name", GOLDENS)
    def test_there_and_back_no_bit_differs(name, tmp_path):
        save_pretrained(load_pretrained(FOLDER / name), tmp_path / "out")
        assert stored(tmp_path / "out") == stored(FOLDER / name)


if "tlama" in GOLDENS:

    def test_loss_and_gradients_are_the_recorded_ones():
        """Rules only move numbers, so a gradient goes through them as its weight does."""
        model, io = load_pretrained(FOLDER / "tlama"), recorded("tlama")
        bind, params = split(model)
        loss_and_gradient = jax.jit(jax.value_and_grad(mean_loss), static_argnums=1)
        tokens, targets = (io[name].astype(np.int32) for name in ("tokens", "targets"))
        loss, gradient = loss_and_gradient(params, bind, tokens, targets)
        assert float(loss) == pytest.approx(float(io["loss"][0]), rel=TOLERANCE)
        arrays = {
            name: np.asarray(variable.get_value())
            for name, variable in named_parameters(bind(gradient)).items()
        }
        found = as_stored(model, arrays)
        names = [name.removeprefix("grad.") for name in io if name.startswith("grad.")]
        assert len(names) > 3
        for name in names:
            assert relative_l2(found[name], io[f"grad.{name}"]) <= TOLERANCE, name

    def test_the_derived_buffer_is_the_recorded_one(tmp_path):
        save_pretrained(load_pretrained(FOLDER / "tlama"), tmp_path / "out")
        ours, theirs = (
            torch.load(folder / "state_dict.pth", weights_only=True)["freq_cis"]
            for folder in (tmp_path / "out", FOLDER / "tlama")
        )
        assert relative_l2(torch.view_as_real(ours), torch.view_as_real(theirs)) <= 1e-6
