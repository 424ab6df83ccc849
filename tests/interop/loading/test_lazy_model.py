"""A model whose weights stay in their files gives the same logits in almost no memory."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from hf_cases import CASES, tokens_of
from tiers import examples
from tiny import WIDE

from benchmarks.large_llama import save_large_llama
from jaxllm.interop import CheckpointError, load_pretrained
from jaxllm.interop.loading.lazy_model import open_pretrained
from jaxllm.models import with_scanned_layers
from jaxllm.params import named_parameters


@pytest.mark.parametrize("case", examples(["llama", "qwen3_moe", "gpt2"], "gpt2"))
def test_logits_equal_those_of_the_loaded_model(case, tmp_path):
    original = CASES[case].build()
    original.save_pretrained(tmp_path)
    tokens = tokens_of(original, batch_size=1)[:, :48]
    loaded = with_scanned_layers(load_pretrained(tmp_path), False)
    np.testing.assert_array_equal(open_pretrained(tmp_path)(tokens).logits, loaded(tokens).logits)


def test_dtype_is_applied_and_origin_is_kept(tmp_path):
    original = CASES["llama"].build().bfloat16()
    original.save_pretrained(tmp_path)
    model = open_pretrained(tmp_path, dtype="float32")
    assert {v.get_value().dtype.name for v in named_parameters(model).values()} == {"float32"}
    assert model.origin == load_pretrained(tmp_path).origin


def test_checkpoint_that_cannot_be_loaded_is_rejected(tmp_path):
    original = CASES["llama"].build()
    original.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 7}))
    with pytest.raises(CheckpointError, match="embed_tokens"):
        open_pretrained(tmp_path)


MEMORY = """
import resource, sys
import jax.numpy as jnp
from jaxllm.interop.loading.lazy_model import open_pretrained

def run(path):
    out = open_pretrained(path, dtype="float32")(jnp.arange(32)[None]).logits
    assert out.shape == (1, 32, 256)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

print(run(sys.argv[1]), run(sys.argv[2]))
"""


@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path):
    save_large_llama(dataclasses.replace(WIDE, num_layers=4), tmp_path / "shallow", 10**9)
    save_large_llama(dataclasses.replace(WIDE, num_layers=24), tmp_path / "deep", 10**9)
    stored = sum(file.stat().st_size for file in (tmp_path / "deep").iterdir())
    command = [sys.executable, "-c", MEMORY, tmp_path / "shallow", tmp_path / "deep"]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    shallow, deep = map(int, out.split())
    assert deep - shallow < stored / 8, (shallow, deep, stored)
