"""Tests of `jaxllm plan`."""

import json
from pathlib import Path

import pytest
from memory_store import memory_store

from jaxllm.cli import main

ROOT = Path(__file__).parents[4]


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
