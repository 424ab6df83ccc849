"""Tests of `jaxllm suggest`."""

import json

import yaml

from jaxllm.cli import main
from jaxllm.config import to_dict
from jaxllm.interop import load_pretrained


def test_suggest_prints_rules_that_can_be_pasted(byte_model, tmp_path, capsys):
    config = to_dict(load_pretrained(byte_model).config)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    weights = str(byte_model / "model.safetensors")
    assert main(["suggest", weights, "--config", str(tmp_path / "model.yaml")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("from jaxllm.interop import Rule\n\nrules = [\n    Rule(")
    assert '"layers.{L}.attn.q_proj.kernel : D N H"' in out
    assert main(["suggest", weights]) == 1
    assert "give the model's config" in capsys.readouterr().err
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert main(["suggest", weights, "--config", str(tmp_path / "list.yaml")]) == 2
    assert "list.yaml: expected a mapping of config fields, found [1]" in capsys.readouterr().err
    (tmp_path / "cut.yaml").write_text("embed_dim: [")
    (tmp_path / "wrong.yaml").write_text("embed_dims: 4")
    (tmp_path / "date.yaml").write_text("embed_dim: 2020-13-45")
    (tmp_path / "twice.yaml").write_text("embed_dim: 4\nembed_dim: 5")
    for name, said in {
        "cut": "while parsing",
        "wrong": "unknown field 'embed_dims'; did you mean 'embed_dim'?",
        "date": "month must be in",
        "twice": "'embed_dim' occurs more than once",
    }.items():
        assert main(["suggest", weights, "--config", str(tmp_path / f"{name}.yaml")]) == 2
        err = capsys.readouterr().err
        assert f"{name}.yaml: " in err
        assert said in err
        assert "pydantic" not in err
