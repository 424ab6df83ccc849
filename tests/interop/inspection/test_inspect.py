"""`inspect` lists any folder, known or not, damaged or not, and names the axis that is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY, random_model

from jaxllm.cli import main
from jaxllm.config import HeadConfig
from jaxllm.interop import CheckpointError, inspect, load_pretrained, save_pretrained

NAME = "model.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """One tiny model in each format, and one with a tied head."""
    found = {}
    for form in ("hf", "meta", "tlama", "native"):
        found[form] = tmp_path_factory.mktemp(form) / form
        save_pretrained(random_model(head_dim=8), found[form], format=form)
    found["tied"] = tmp_path_factory.mktemp("tied") / "tied"
    save_pretrained(random_model(head_dim=8, head=HeadConfig(tied=True)), found["tied"])
    return found


@pytest.fixture
def llama(folders, tmp_path) -> Path:
    """A copy of the Hugging Face folder, for tests that damage it."""
    return Path(shutil.copytree(folders["hf"], tmp_path / "llama"))


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / NAME)
    change(tensors)
    save_file(tensors, folder / NAME, metadata={"format": "pt"})


def uses(folder: Path) -> dict[str, str]:
    return {group.name: group.use for group in inspect(folder).tensors}


@pytest.mark.parametrize("form", ["hf", "meta", "tlama", "native", "tied"])
def test_every_tensor_of_a_valid_folder_is_accounted_for(folders, form):
    found = inspect(folders[form])
    assert found.ok
    assert not found.problems
    assert all(group.use != "unknown" for group in found.tensors)
    values = sum(v.size for v in _arrays(folders["tied" if form == "tied" else "hf"]))
    assert found.num_values >= values  # state dicts also hold buffers and copies of norms
    if form in ("hf", "tied", "native"):
        assert (found.num_values, found.num_bytes) == (values, 4 * values)


def _arrays(folder: Path) -> list[torch.Tensor]:
    return [tensor.numpy() for tensor in load_file(folder / NAME).values()]


def test_an_adapter_beside_the_model_is_noted(llama, capsys):
    assert not inspect(llama).notes
    (llama / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert main(["inspect", str(llama)]) == 0
    assert "adapter_config.json) is not loaded" in " ".join(capsys.readouterr().out.split())


def test_layers_are_folded_and_mapped_to_their_arrays(folders):
    assert uses(folders["hf"])["model.layers.{0..2}.self_attn.q_proj.weight"] == (
        "layers.*.attn.q_proj.kernel"
    )
    assert uses(folders["hf"])["lm_head.weight"] == "lm_head.kernel"
    assert uses(folders["meta"])["00/layers.{0..2}.attention.wq.weight"] == (
        "layers.*.attn.q_proj.kernel"
    )
    assert uses(folders["tlama"])["freq_cis"] == "computed from the config"
    assert uses(folders["native"])["layers.0:3.attn.q_proj.kernel"] == "itself"


def test_ignored_tensors_and_copies_state_the_reason(folders, tmp_path):
    folder = Path(shutil.copytree(folders["tied"], tmp_path / "tied"))

    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        for layer in (0, 2):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    edit_tensors(folder, add)
    found = uses(folder)
    assert found["lm_head.weight"] == "a copy of model.embed_tokens.weight"
    ignored = found["model.layers.{0,2}.self_attn.rotary_emb.inv_freq"]
    assert ignored == "ignored: derived from the config"
    assert inspect(folder).ok


def test_fields_are_read_not_used_or_unknown(llama):
    edit_config(llama, bos_token_id=1, is_causal=False)
    found = inspect(llama)
    assert found.fields["hidden_size"] == "read"
    assert found.fields["bos_token_id"] == "not used"
    assert found.fields["is_causal"] == "unknown"
    assert not found.ok


def test_a_damaged_folder_is_still_listed(llama):
    """Reports the problems that loading would, and still lists the tensors."""

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.upp.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")

    edit_tensors(llama, damage)
    edit_config(llama, no_such_field=1)
    found = inspect(llama)
    with pytest.raises(CheckpointError) as refused:
        load_pretrained(llama)
    assert found.problems == refused.value.problems
    kinds = uses(llama)
    assert kinds["model.layers.1.mlp.upp.weight"] == "unknown"
    assert kinds["model.layers.{0..2}.mlp.gate_proj.weight"] == "layers.*.mlp.gate_proj.kernel"
    assert kinds["model.layers.{0,2}.mlp.up_proj.weight"] == "layers.*.mlp.up_proj.kernel"


@pytest.mark.parametrize(
    "unknown",
    [
        lambda folder: edit_config(folder, model_type="mamba"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("{"),
    ],
)
def test_the_tensors_of_an_unknown_family_are_listed(llama, unknown):
    unknown(llama)
    found = inspect(llama)
    assert not found.ok
    assert found.family is None
    assert "model.layers.{0..2}.self_attn.q_proj.weight" in uses(llama)


def test_files_of_any_name_are_listed(llama, tmp_path):
    folder = tmp_path / "any"
    folder.mkdir()
    shutil.copy(llama / NAME, folder / "weights.safetensors")
    torch.save({"step.0": torch.ones(3), "step.1": torch.ones(3)}, folder / "extra.pt")
    found = inspect(folder)
    assert not found.ok
    assert "config.json is missing" in found.problems[0]
    groups = {group.name: group for group in found.tensors}
    assert groups["extra.pt/step.{0..1}"].count == 2
    assert groups["weights.safetensors/lm_head.weight"].shape == (TINY.vocab_size, TINY.embed_dim)


def test_a_folder_without_tensors_is_a_problem(tmp_path):
    found = inspect(tmp_path)
    assert not found.ok
    assert not found.tensors
    assert "no tensor file" in found.problems[-1]
    with pytest.raises(CheckpointError, match="not a folder"):
        inspect(tmp_path / "nothing")


def test_the_command_prints_text_and_json(folders, llama, capsys):
    assert main(["inspect", str(folders["hf"])]) == 0
    said = capsys.readouterr().out
    for text in ("model.layers.{0..2}.mlp.up_proj.weight", "float32 56 x 32", "on one device"):
        assert text in said, text
    assert main(["inspect", str(folders["hf"]), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert found["family"] == "llama"
    assert found["num_bytes"] == sum(group["num_bytes"] for group in found["tensors"])
    assert set(found["plan"]["bytes_by_device"].values()) == {found["num_bytes"]}
    assert found["plan"]["peak_host_bytes_above_arrays"] <= 256 << 20
    edit_config(llama, model_type="llamma")
    assert main(["inspect", str(llama)]) == 1
    said = capsys.readouterr().out
    assert "did you mean 'llama'?" in " ".join(said.split())
    assert main(["inspect", str(llama), "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["ok"]
    assert main(["inspect", str(llama / "nothing")]) == 2


# Wrong shapes: the config axis that explains them, if there is one.


def shape_problems(folder: Path) -> list[str]:
    return [problem for problem in inspect(folder).problems if "in the file" in problem]


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("num_attention_heads", 2, 4),
        ("num_key_value_heads", 1, 2),
        ("intermediate_size", 60, 56),
        ("vocab_size", 90, 96),
    ],
)
def test_the_field_that_the_shapes_contradict_is_named_once(llama, field, wrong, right):
    edit_config(llama, **{field: wrong})
    [problem] = inspect(llama).problems
    assert problem.startswith(f"{field} is {wrong} in the config, but {right} by the shapes of ")


def test_a_mismatch_that_two_axes_could_explain_is_not_guessed(llama):
    """The heads in the file may be twice as wide or twice as many."""
    edit_config(llama, head_dim=4)
    lines = [line for line in shape_problems(llama) if "q_proj.weight" in line]
    assert all(
        "(N r h) is 4 x 2 x 2 = 16 from the config, 32 in the file" in line for line in lines
    )


def test_a_mismatch_in_one_layer_only_is_not_blamed_on_the_config(llama):
    name = "model.layers.1.self_attn.q_proj.weight"
    edit_tensors(llama, lambda tensors: tensors.update({name: torch.ones(64, 32)}))
    assert shape_problems(llama) == [
        f"{name}: (N r h) is 4 x 2 x 4 = 32 from the config, 64 in the file"
    ]
