"""Golden checkpoints written by the source systems, with the outputs that these computed.

They are beside the repository. Without them, this file has no tests to run.
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
from jaxllm.layers.experts.balance import balance_of
from jaxllm.models import with_scanned_layers
from jaxllm.params import named_parameters, split, stacked_layers

TOLERANCE = 1e-5  # relative L2, float32
FOLDER = Path(__file__).parents[2].parent / "shared" / "golden"
DERIVED = ("freq_cis", "rope.freqs", "pos_encoding.pe", "pe.pe")


def has_family(folder: Path) -> bool:
    """Whether some family reads the folder's config."""
    if (folder / "params.json").is_file():
        return True
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    return model_type in {family.model_type for family in FAMILIES}


FOLDERS = sorted(FOLDER.iterdir()) if FOLDER.is_dir() else []
GOLDENS = [folder.name for folder in FOLDERS if has_family(folder)]


def recorded(name: str) -> dict[str, np.ndarray]:
    return load_file(FOLDER / name / "io.safetensors")


def stored(folder: Path) -> dict[tuple[str, str], tuple]:
    """Returns the dtype, shape and bytes of every tensor in every file, except derived buffers."""
    tensors = {}
    for file in sorted(folder.glob("*.pth")):
        for name, tensor in torch.load(file, weights_only=True, map_location="cpu").items():
            if torch.is_tensor(tensor) and not name.endswith(DERIVED):
                data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
                tensors[file.name, name] = tensor.dtype, tuple(tensor.shape), data
    return tensors


def keys(folder: Path) -> dict[str, set[str]]:
    """Returns the names in every file, including derived buffers."""
    return {
        file.name: set(torch.load(file, weights_only=True)) for file in sorted(folder.glob("*.pth"))
    }


def logits_of(model, io: dict[str, np.ndarray]) -> jax.Array:
    """The model's logits for the recorded inputs; 0 is padding in a source of token ids."""
    tokens = [io[name] for name in ("tokens", "x", "src", "tgt") if name in io]
    tokens = [x if x.dtype == np.float32 else x.astype(np.int32) for x in tokens]
    masks = {"src_segment_ids": io["src"] != 0} if "src" in io and io["src"].ndim == 2 else {}
    return jax.jit(lambda model, *tokens: model(*tokens, **masks).logits)(model, *tokens)


def mean_loss(params: dict, bind, tokens: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean cross-entropy of `targets`, which are already shifted, as in the source system."""
    logits = bind(params)(tokens).logits
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)
    return -jnp.mean(picked)


def as_stored(model, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Converts arrays shaped like the parameters, such as gradients, to the stored names."""
    family = next(family for family in FAMILIES if family.name == model.origin.family)
    table = family.table(model.config, Layout(**json.loads(model.origin.layout)))
    tensors = {}
    for rule, sizes in table.bound(stacked_layers(model)):
        transfer = rule.exporting(sizes)
        for name, index in transfer.target.names(sizes):
            out = np.empty(transfer.target.shape(sizes), np.float32)
            for piece in transfer.pieces(index, [(0, size) for size in out.shape]):
                transfer.copy(piece, arrays[piece.name], out)
            tensors[name] = out
    return tensors


if GOLDENS:

    @pytest.mark.parametrize("name", GOLDENS)
    def test_logits_match_the_recorded_ones(name):
        model, io = load_pretrained(FOLDER / name), recorded(name)
        expected = io["logits"] if "logits" in io else io["y"]
        assert relative_l2(logits_of(model, io), expected) <= TOLERANCE

    @pytest.mark.parametrize("name", GOLDENS)
    def test_weights_round_trip_bitwise(name, tmp_path):
        save_pretrained(load_pretrained(FOLDER / name), tmp_path / "out")
        assert stored(tmp_path / "out") == stored(FOLDER / name)
        assert keys(tmp_path / "out") == keys(FOLDER / name)
        config_file = next(FOLDER.joinpath(name).glob("*.json")).name
        original, written = (
            json.loads((folder / config_file).read_text())
            for folder in (FOLDER / name, tmp_path / "out")
        )
        assert original.items() <= written.items()


if "tlama" in GOLDENS:

    def test_loss_and_gradients_match_the_recorded_ones():
        """Rules only move numbers, so they convert gradients in the same way as weights."""
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

    def test_the_derived_rope_buffer_matches_the_recorded_one(tmp_path):
        save_pretrained(load_pretrained(FOLDER / "tlama"), tmp_path / "out")
        ours, theirs = (
            torch.load(folder / "state_dict.pth", weights_only=True)["freq_cis"]
            for folder in (tmp_path / "out", FOLDER / "tlama")
        )
        assert relative_l2(torch.view_as_real(ours), torch.view_as_real(theirs)) <= 1e-6


if "nima_gpt" in GOLDENS:

    def test_segment_ids_reproduce_the_attention_mask():
        """Compared at tokens only, since outputs at padding are never used."""
        model, io = load_pretrained(FOLDER / "nima_gpt"), recorded("nima_gpt")
        tokens, mask = (io[name].astype(np.int32) for name in ("tokens", "attention_mask"))
        assert 0 < mask.mean() < 1
        logits = np.asarray(model(tokens, segment_ids=mask).logits)
        assert relative_l2(logits[mask == 1], io["logits_padded"][mask == 1]) <= TOLERANCE


if "nima_encdec" in GOLDENS:

    def test_sinusoidal_positions_match_the_recorded_ones(tmp_path):
        save_pretrained(load_pretrained(FOLDER / "nima_encdec"), tmp_path / "out")
        ours, theirs = (
            torch.load(folder / "state_dict.pth", weights_only=True)["pos_encoding.pe"]
            for folder in (tmp_path / "out", FOLDER / "nima_encdec")
        )
        assert relative_l2(ours, theirs) <= 1e-6


if "comp_armoe" in GOLDENS:

    def test_experts_beyond_capacity_match_the_recorded_output():
        """Also the loss, which counts tokens that experts accepted, unlike the documented one."""
        model, io = load_pretrained(FOLDER / "comp_armoe"), recorded("comp_armoe")
        moe = with_scanned_layers(model, False).layers["0"].mlp
        out, load = moe(io["moe_in"])
        assert relative_l2(out, io["moe_out"]) <= TOLERANCE
        loss = float(balance_of(moe.experts, [load]).aux_loss)
        assert loss == pytest.approx(float(io["moe_aux"][0]), rel=TOLERANCE)


@pytest.mark.parametrize("name", [name for name in GOLDENS if name.startswith("comp_")])
def test_sinusoidal_positions_of_components_match_the_recorded_ones(name, tmp_path):
    save_pretrained(load_pretrained(FOLDER / name), tmp_path / "out")
    ours, theirs = (
        torch.load(folder / "state_dict.pth", weights_only=True)
        for folder in (tmp_path / "out", FOLDER / name)
    )
    buffers = [key for key in theirs if key.endswith("pe.pe")]
    assert buffers
    for key in buffers:
        assert relative_l2(ours[key], theirs[key]) <= 1e-6
