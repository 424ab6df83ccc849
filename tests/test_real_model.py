"""Checks that need trained weights: SmolLM2-135M-Instruct from a GGUF file, and transformers."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

gguf = pytest.importorskip("gguf")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxllm.cli import main
from jaxllm.commands.walkthroughs.demo import find_model
from jaxllm.generation import generate
from jaxllm.interop import load_pretrained
from jaxllm.interop.families.gguf.translate import read_gguf
from jaxllm.tokenization import load_tokenizer
from jaxllm.tokenization.chat import render_chat

pytestmark = pytest.mark.real_model

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
START, END = "<|im_start|>", "<|im_end|>"


@pytest.fixture(scope="module")
def file() -> Path:
    return find_model(None)


@pytest.fixture(scope="module")
def theirs(file):
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def their_tokenizer(file):
    return transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def chat_ids(file: Path) -> list[int]:
    return load_tokenizer(file).encode_chat(render_chat(file, MESSAGES))


def test_weights_are_decoded_as_transformers_decodes_them(file, theirs):
    _, _, tensors = read_gguf(file)
    expected = theirs.state_dict()
    assert expected.keys() - tensors.keys() == {"lm_head.weight"}  # tied
    for name, tensor in tensors.items():
        assert tensor.read().tobytes() == expected[name].numpy().tobytes(), name


def test_markers_of_a_chat_are_single_tokens(file, their_tokenizer):
    ids = chat_ids(file)
    expected = their_tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)
    assert ids == list(getattr(expected, "input_ids", expected))
    start, end = their_tokenizer.convert_tokens_to_ids([START, END])
    text = render_chat(file, MESSAGES)
    assert ids.count(start) == text.count(START) == 3
    assert ids.count(end) == text.count(END) == 2


def test_a_greedy_answer_is_that_of_transformers_and_ends(file, theirs, their_tokenizer):
    end = load_tokenizer(file).eos_id
    assert end == their_tokenizer.convert_tokens_to_ids(END)
    prompt = chat_ids(file)
    [answer] = generate(load_pretrained(file), [prompt], 40, eos_ids=(end,))
    given = torch.tensor([prompt])
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    expected = theirs.generate(given, attention_mask=torch.ones_like(given), **options)
    assert list(answer) == expected[0, len(prompt) :].tolist()
    assert answer[-1] == end
    assert "Paris" in load_tokenizer(file).decode(answer)


def test_every_device_of_a_mesh_holds_its_part(file):
    """Blocks of quantized numbers do not end where shards do."""
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), (jax.sharding.AxisType.Auto,) * 2)
    whole, split = load_pretrained(file), load_pretrained(file, mesh=mesh)
    pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True)
    assert all(np.array_equal(np.asarray(one), np.asarray(other)) for one, other in pairs)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parity_holds(dtype, file, tmp_path):
    """Bounds of bfloat16 follow from rounding noise, which is another with trained weights."""
    options = ["--quick", "--dtype", dtype, "--output", str(tmp_path)]
    assert main(["parity", str(file), *options]) == 0
    report = json.loads((tmp_path / "parity.json").read_text())
    assert report["ok"]
