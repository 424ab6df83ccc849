"""`verify` finds every flipped bit and names its tensor."""

import hashlib
import json
import shutil
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import random_model

from jaxllm.cli import main
from jaxllm.config import HeadConfig, NumericsConfig
from jaxllm.interop import CheckpointError, load_pretrained, save_pretrained, verify
from jaxllm.interop.formats import safetensors_file
from jaxllm.interop.formats.pytorch import torch_zip
from jaxllm.interop.inspection.verify import _count_nonfinite, _differing_bits
from jaxllm.interop.rules.transfer import Transfer
from jaxllm.params import named_parameters, with_arrays


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """One bfloat16 model in every format."""
    found = {}
    model = random_model(
        head_dim=8, numerics=NumericsConfig(param_dtype="bfloat16", dtype="bfloat16")
    )
    for form in ("hf", "meta", "tlama", "native"):
        found[form] = tmp_path_factory.mktemp(form) / form
        save_pretrained(model, found[form], format=form)
    return found


def flip_bit(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1 << 3
    file.write_bytes(data)


@pytest.mark.parametrize("max_ram", [1000, "256MiB"])
@pytest.mark.parametrize("form", ["hf", "meta", "tlama", "native"])
def test_every_tensor_survives_the_round_trip(form, max_ram, folders):
    found = verify(folders[form], max_ram=max_ram)
    assert found.ok
    assert found.differing_bits == found.num_nonfinite == 0
    alone = {tensor.name for tensor in found.tensors if tensor.differing_bits is None}
    assert alone == (
        {"freq_cis"} if form == "tlama" else set()
    )  # derived from the config, so recomputed
    assert "0 differing bits" in found.summary
    if form == "native":
        model = load_pretrained(folders[form])
        arrays = {n: np.asarray(v.get_value()) for n, v in named_parameters(model).items()}
    elif form == "hf":
        stored = load_file(folders[form] / "model.safetensors")
        arrays = {name: t.view(torch.uint16).numpy() for name, t in stored.items()}
    else:
        return
    assert {tensor.name for tensor in found.tensors} == arrays.keys()
    for tensor in found.tensors:
        assert tensor.sha256 == hashlib.sha256(arrays[tensor.name].tobytes()).hexdigest()
        assert tensor.num_bytes == arrays[tensor.name].nbytes


def test_an_export_that_is_not_the_inverse_is_found(folders, monkeypatch):
    """An export that swaps two heads: every affected tensor is named."""
    read = Transfer.read

    def mix_up(self, index, box, *rest):
        out = read(self, index, box, *rest)
        if "k_proj.weight" in self.target.name:
            out[[0, 1]] = out[[1, 0]]
        return out

    monkeypatch.setattr(Transfer, "read", mix_up)
    found = verify(folders["hf"])
    assert not found.ok
    assert len(found.problems) == 3
    assert all("self_attn.k_proj.weight: " in problem for problem in found.problems)
    assert 0 < found.differing_bits < 3 * 2 * 32 * 16
    assert f"{found.differing_bits:,} differing bits" in found.summary


def test_differing_bits_are_counted_individually(folders, tmp_path):
    """A copy that differs: the norm of the second shard."""
    folder = tmp_path / "meta"
    model = random_model(head_dim=8)
    save_pretrained(model, folder, format="meta", model_parallel=2)
    assert verify(folder).ok
    state = torch.load(folder / "consolidated.01.pth", weights_only=True)
    state["norm.weight"].view(torch.int32)[3] ^= 0b1011
    torch.save(state, folder / "consolidated.01.pth")
    found = verify(folder)
    assert found.problems == ["01/norm.weight: 3 of 1,024 bits differ"]


def test_tied_ignored_and_unexpected_tensors(tmp_path):
    model = random_model(head_dim=8, head=HeadConfig(tied=True))
    save_pretrained(model, tmp_path / "tied")
    file = tmp_path / "tied" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, file, metadata={"format": "pt"})
    found = verify(tmp_path / "tied")
    assert found.ok
    of = {tensor.name: tensor for tensor in found.tensors}
    assert of["lm_head.weight"].differing_bits == 0
    buffer = of["model.layers.0.self_attn.rotary_emb.inv_freq"]
    assert (buffer.differing_bits, buffer.remark) == (None, "derived from the config")
    assert "1 without a round trip" in found.summary
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    assert verify(tmp_path / "tied").ok  # it is loaded as untied
    tensors["surplus"] = torch.ones(2)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="surplus is unexpected"):
        verify(tmp_path / "tied")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_non_finite_numbers_are_counted(dtype, tmp_path):
    model = random_model(head_dim=8, numerics=NumericsConfig(param_dtype=dtype, dtype=dtype))
    arrays = {name: v.get_value() for name, v in named_parameters(model).items()}
    scale = arrays["final_norm.scale"]
    arrays["final_norm.scale"] = scale.at[:3].set(jnp.array([jnp.nan, jnp.inf, -jnp.inf], dtype))
    save_pretrained(with_arrays(model, arrays), tmp_path / "out")
    found = verify(tmp_path / "out")
    assert found.ok
    counts = {t.name: t.num_nonfinite for t in found.tensors if t.num_nonfinite}
    assert counts == {"model.norm.weight": 3}
    assert "3 non-finite numbers" in found.summary


@pytest.mark.parametrize("form", ["hf", "meta", "native"])
def test_a_manifest_finds_every_flipped_bit(form, folders, tmp_path):
    folder = Path(shutil.copytree(folders[form], tmp_path / form))
    manifest = tmp_path / "manifest.json"
    assert verify(folder, manifest=manifest).ok
    recorded = json.loads(manifest.read_text())["tensors"]
    assert {"dtype", "shape", "sha256"} == next(iter(recorded.values())).keys()
    assert verify(folder, manifest=manifest).ok
    if form == "native":
        model = load_pretrained(folder)
        arrays = {name: v.get_value() for name, v in named_parameters(model).items()}
        name = "final_norm.scale"
        arrays[name] = arrays[name].at[5].multiply(2)
        shutil.rmtree(folder)
        save_pretrained(with_arrays(model, arrays), folder, format="native")
    elif form == "hf":
        file, name = folder / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
        flip_bit(file, safetensors_file.read_header(file)[name].offset + 77)
    else:
        file, name = folder / "consolidated.00.pth", "00/layers.2.attention.wo.weight"
        flip_bit(file, torch_zip.read_header(file)[name.partition("/")[2]].offset + 9)
    found = verify(folder, manifest=manifest)
    assert not found.ok
    assert found.differing_bits == 0  # the file is valid but changed
    assert len(found.problems) == 1
    assert found.problems[0].startswith(f"{name}: sha256 is ")
    assert json.loads(manifest.read_text())["tensors"] == recorded
    assert "1 changes since the manifest" in found.summary


def test_missing_and_additional_manifest_entries_are_named(folders, tmp_path):
    manifest = tmp_path / "manifest.json"
    verify(folders["hf"], manifest=manifest)
    recorded = json.loads(manifest.read_text())["tensors"]
    recorded["ghost"] = recorded.pop("model.norm.weight")
    recorded["lm_head.weight"]["dtype"] = "float32"
    manifest.write_text(json.dumps({"tensors": recorded}))
    assert sorted(verify(folders["hf"], manifest=manifest).problems) == [
        "ghost is in the manifest but not in the checkpoint",
        "lm_head.weight: dtype is bfloat16, but float32 in the manifest",
        "model.norm.weight is in the checkpoint but not in the manifest",
    ]
    for text in ("[]", '{"tensors": [1]}', '{"tensors": {"a": 1}}', "{"):
        manifest.write_text(text)
        with pytest.raises(CheckpointError, match=r"manifest\.json"):
            verify(folders["hf"], manifest=manifest)
        assert manifest.read_text() == text


def test_a_model_that_no_family_supports_is_still_checksummed(tmp_path):
    model = random_model({"attention.qk_norm": "head", "mlp.bias": True}, head_dim=8)
    save_pretrained(model, tmp_path / "native", format="native")
    found = verify(tmp_path / "native")
    assert found.ok
    assert all(tensor.differing_bits is None for tensor in found.tensors)
    assert all(
        "llama: model_type 'llama' does not support attention.qk_norm='head'" in tensor.remark
        for tensor in found.tensors
    )
    assert "17 without a round trip" in found.summary


def test_the_command_prints_text_and_json(folders, tmp_path, capsys):
    manifest = str(tmp_path / "manifest.json")
    assert main(["verify", str(folders["hf"]), "--manifest", manifest]) == 0
    assert "30 tensors" in capsys.readouterr().out
    folder = Path(shutil.copytree(folders["hf"], tmp_path / "hf"))
    flip_bit(folder / "model.safetensors", -1)
    assert main(["verify", str(folder), "--manifest", manifest]) == 1
    assert "sha256 is" in capsys.readouterr().out
    assert main(["verify", str(folder), "--manifest", manifest, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], len(report["problems"]), report["num_tensors"]) == (False, 1, 30)
    assert report["tensors"][0].keys() >= {"name", "sha256", "differing_bits", "num_nonfinite"}
    assert main(["verify", str(tmp_path / "nowhere")]) == 2
    assert main(["verify", str(folder), "--step", "3"]) == 1
    assert "is not a run" in capsys.readouterr().err


def test_differing_bits_counts_flipped_bits():
    one = np.random.default_rng(0).integers(0, 256, 1001, np.uint8)
    other = one.copy()
    other[[0, 500, 1000]] ^= np.array([255, 1, 3], np.uint8)
    assert _differing_bits(one.data, other.data) == 11
    assert _differing_bits(one.data, one.data) == 0


def test_nonfinite_numbers_are_counted_in_every_dtype():
    for dtype in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16, np.float64):
        assert _count_nonfinite(np.array([1, np.nan, 2], dtype)) == 1
    signalling = np.array([0x7F81, 0x3F80], np.uint16).view(ml_dtypes.bfloat16)
    assert _count_nonfinite(signalling) == 1
    assert _count_nonfinite(np.array([1, 2])) == _count_nonfinite(np.array([True])) == 0
