"""Tests of `jaxllm train` and `jaxllm plan`."""

import json
from pathlib import Path

import pytest
from memory_store import memory_store

from jaxllm.cli import main

ROOT = Path(__file__).parents[3]


def test_misspelled_config_key_gets_a_suggestion(tmp_path, capsys):
    text = (ROOT / "configs" / "tiny.yaml").read_text()
    bad = tmp_path / "bad.yaml"
    bad.write_text(text.replace("learning_rate", "learning_rat").replace("seq_len", "seqlen"))
    assert main(["train", str(bad)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        f"jaxllm: {bad}: unknown field 'optimizer.learning_rat'; did you mean 'learning_rate'?"
        in lines
    )
    assert f"jaxllm: {bad}: unknown field 'seqlen'; did you mean 'seq_len'?" in lines


@pytest.mark.parametrize("command", [["train"], ["plan"], ["parity", "mesh"]])
def test_config_after_an_override_and_a_wrong_override_are_explained(command, capsys):
    config = str(ROOT / "configs" / "tiny.yaml")
    assert main([*command, "--mesh.fsdp", "4", config]) == 2
    assert "4: No such file or directory; CONFIG comes before" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*command, config, "--mesh.fsdq", "4"])
    assert end.value.code == 2
    shown = "".join(capsys.readouterr().err.replace("│", "").split())
    assert "".join(f"run jaxllm {' '.join(command)} {config} --help".split()) in shown


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("9", "speed.profile='9' is not FIRST:LAST, such as 10:15"),
        ("10:1000000", "speed.profile='10:1000000' has steps after the last one: steps="),
    ],
)
def test_steps_to_profile_are_checked_before_the_run(tmp_path, capsys, steps, message):
    config = str(ROOT / "configs" / "tiny.yaml")
    assert main(["train", config, "--output", str(tmp_path / "run"), "--profile", steps]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_train_override_resume_and_export(tmp_path, byte_model, capsys):
    """Trains from a checkpoint, resumes, exports and generates through the command line."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    (tmp_path / "run.yaml").write_text(
        f"output: {tmp_path}/run\nsteps: 4\nbatch_size: 8\nseq_len: 32\ninit_from: {byte_model}\n"
        f"data:\n  text: [{tmp_path}/text.txt]\n  held_out: 0.2\nmesh: {{fsdp: 4, tensor: 2}}\n"
    )
    config = str(tmp_path / "run.yaml")
    assert main(["train", config, "--save-every", "2", "--profile", "2:3"]) == 0
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    out = capsys.readouterr()
    assert "held-out loss" in out.out
    assert main(["train", config]) == 2
    assert "already holds a run of 4 steps; use --resume to continue it" in capsys.readouterr().err
    assert main(["train", config, "--resume", "--optimizer.learning-rate", "1.0"]) == 2
    assert "optimizer.learning_rate: 0.0003 in the checkpoint, 1.0 now" in capsys.readouterr().err
    assert main(["train", config, "--resume", "--profile", "2:3"]) == 0
    assert "profile 2:3  without the steps up to 4" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    assert (
        main(["generate", str(tmp_path / "run"), "--prompt", "the ", "--max-new-tokens", "4"]) == 0
    )
    assert capsys.readouterr().out.splitlines()[-1].startswith("the ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping of fields, as in configs/tiny.yaml, found None"),
        ("- 1", "found [1]"),
        ("steps: 2\nsteps: 3", "'steps' occurs more than once"),
        ("optimizer: {b1: 0.9, b1: 0.8}", "'b1' occurs more than once"),
        ("a: [", "while parsing"),
    ],
)
def test_invalid_yaml_is_rejected(text, message, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(text)
    assert main(["train", str(tmp_path / "run.yaml")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_a_step_that_a_run_does_not_have_leaves_nothing_behind(tmp_path, capsys):
    arguments = [str(ROOT / "configs" / "tiny.yaml"), "--output", str(tmp_path / "run")]
    assert main(["train", *arguments, "--resume-from", "7", "--mesh.data", "8"]) == 2
    assert "has no checkpoint of step 7; it has none" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_plan_prints_the_cost_of_a_run(tmp_path, capsys):
    config = str(ROOT / "configs" / "tiny.yaml")
    assert main(["plan", config, "--plot", str(tmp_path / "schedule.png")]) == 0
    out = capsys.readouterr().out
    assert "parameters        " in out
    assert "compute-optimal" in out
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plan", config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 60 * 16 * 128
    with pytest.raises(SystemExit):
        main(["plan", config, "--plot", "schedule.doc"])
    assert "'schedule.doc' is not a .png, .pdf or .svg" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_plan_options_of_a_topology_are_refused_without_one(capsys):
    assert main(["plan", str(ROOT / "configs" / "tiny.yaml"), "--search", "--analytic"]) == 2
    assert "--search, --analytic: only with --topology" in capsys.readouterr().err


def test_plan_applies_overrides(capsys):
    tokens = []
    for steps in ("40", "80"):
        assert main(["plan", str(ROOT / "configs" / "tiny.yaml"), "--steps", steps, "--json"]) == 0
        tokens.append(json.loads(capsys.readouterr().out)["tokens"])
    assert tokens[1] == 2 * tokens[0]


def test_plan_on_devices_that_are_not_there(tmp_path, monkeypatch, capsys):
    """By the analytic model: for a config, and for a folder with nothing but a config.json."""
    config = str(ROOT / "configs" / "tiny.yaml")
    devices = ["--analytic", "--topology", "v5p:2x2x2"]
    assert main(["plan", config, *devices, "--mesh.fsdp", "8"]) == 0
    assert "v5p:2x2x2, fsdp 8, by the analytic model: fits" in capsys.readouterr().out
    assert main(["plan", config, *devices]) == 2
    assert "the mesh of one device needs 1 devices, but v5p:2x2x2 has 8" in capsys.readouterr().err
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128}
    fields = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **sizes, **heads}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert main(["plan", str(tmp_path), *devices, "--json", "--steps", "7"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["mesh"]["fsdp"], found["tokens"]) == (8, 7 * 8 * 128)
    monkeypatch.setenv("JAXLLM_CACHE", str(tmp_path / "cache"))
    with memory_store() as store:
        store.pipe("gs://bucket/model/config.json", json.dumps(fields).encode())
        store.pipe("gs://bucket/model/model.safetensors", b"is not read")
        store.pipe("s3://bucket/run.yaml", Path(config).read_bytes())
        assert main(["plan", "gs://bucket/model", *devices, "--json", "--steps", "7"]) == 0
        assert json.loads(capsys.readouterr().out) == found
        assert main(["plan", "s3://bucket/run.yaml", *devices, "--mesh.fsdp", "8"]) == 0
        assert "v5p:2x2x2, fsdp 8, by the analytic model: fits" in capsys.readouterr().out
    del fields["hidden_size"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert main(["plan", str(tmp_path), *devices]) == 1
    assert "hidden_size" in capsys.readouterr().err
