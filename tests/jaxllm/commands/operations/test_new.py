"""`jaxllm new`: the file that it writes, and what it refuses."""

import json
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from jaxllm.cli import main
from jaxllm.commands.operations.new import preset_names
from jaxllm.lora.config import LoraConfig
from jaxllm.train import load_config

ROOT = Path(__file__).parents[4]
ROWS = {
    "text": {"text": "a text"},
    "chat": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"},
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, row in ROWS.items():
        rows = [json.dumps(row if kind != "text" else {"text": f"text {n}"}) for n in range(99)]
        (tmp_path / f"{kind}.jsonl").write_text("\n".join(rows))
    return tmp_path


@pytest.mark.parametrize("kind", ROWS)
def test_the_kind_of_data_is_that_of_the_first_row(kind, data, byte_model, capsys):
    arguments = ["--from", str(byte_model), "--data", f"{kind}.jsonl", "--tokenizer", "bytes"]
    assert main(["new", "mine", *arguments, "--lora"]) == 0
    assert f"wrote mine.yaml  data.{kind}" in capsys.readouterr().out
    config = load_config("mine.yaml")
    assert getattr(config.data, kind) == (f"{kind}.jsonl",)
    assert config.data.tokenizer == "bytes"
    assert (config.init_from, config.output) == (str(byte_model), "runs/mine")
    assert config.optimizer.lora == LoraConfig()
    assert config.seq_len == 512
    assert sum("# " in line for line in Path("mine.yaml").read_text().splitlines()) > 10


@pytest.mark.exhaustive
def test_a_run_of_the_file_trains(data):
    assert main(["new", "small", "--from", "tiny", "--data", "text.jsonl"]) == 0
    short = ["--steps", "2", "--optimizer.warmup-steps", "1", "--seq-len", "16"]
    assert (
        main(["train", "small.yaml", *short, "--mesh.data", "8", "--logging.tensorboard", "False"])
        == 0
    )
    assert (data / "runs" / "small" / "checkpoints" / "2").is_dir()


@pytest.mark.parametrize("name", preset_names())
def test_the_architectures_are_those_of_the_configs(name, data):
    text = files("jaxllm.commands.operations").joinpath("presets", f"{name}.yaml").read_text()
    shown = [yaml.safe_load(path.read_text()) for path in (ROOT / "configs").glob("*.yaml")]
    assert yaml.safe_load(text)["model"] in [config.get("model") for config in shown]
    assert main(["new", "big", "--from", name, "--data", "text.jsonl"]) == 0
    assert load_config("big.yaml").model is not None


def test_tokens_are_known_by_their_files(data):
    assert main(["tokenize", "text.jsonl", "shards", "--tokenizer", "bytes"]) == 0
    assert main(["new", "fast", "--from", "tiny", "--data", "shards", "--tokenizer", "bytes"]) == 0
    assert load_config("fast.yaml").data.tokens == ("shards",)


def test_what_is_not_there_is_refused_and_nothing_is_overwritten(data, capsys):
    base = ["new", "mine", "--data", "text.jsonl", "--from"]
    assert main([*base, "llama3-8c"]) == 2
    assert "no such architecture; there are" in (err := capsys.readouterr().err)
    assert "llama3-8b" in err
    assert main([*base, "tiny", "--lora"]) == 2
    assert "--lora: tiny has no weights to adapt" in capsys.readouterr().err
    assert main(["new", "mine", "--data", "gone.jsonl", "--from", "tiny"]) == 2
    assert "no file matches 'gone.jsonl'" in capsys.readouterr().err
    assert not (data / "mine.yaml").exists()
    assert main([*base, "tiny"]) == 0
    assert main([*base, "tiny"]) == 2
    assert "mine.yaml exists" in capsys.readouterr().err


@pytest.mark.torch
def test_an_adapter_is_trained_on(data, byte_model, capsys):
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "base_model_name_or_path": str(byte_model),
    }
    (data / "adapter").mkdir()
    (data / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    arguments = ["--from", "adapter", "--data", "text.jsonl", "--tokenizer", "bytes"]
    assert main(["new", "more", *arguments, "--lora"]) == 2
    assert "--lora: adapter is an adapter, which is trained on as it is" in capsys.readouterr().err
    assert main(["new", "more", *arguments]) == 0
    assert load_config("more.yaml").optimizer.lora is None
    assert main(["data", "more.yaml", "--batch-size", "1"]) == 0
