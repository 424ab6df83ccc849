"""Perplexity of documents: transformers' loss of each, however rows and devices share them."""

import math

import jax
import numpy as np
import pytest
import torch
import transformers
from tiers import examples

from jaxllm.errors import UserError
from jaxllm.interop import load_pretrained
from jaxllm.models import Decoder
from jaxllm.train import make_mesh
from jaxllm.train.data.documents import make_rows
from jaxllm.train.data.streams.windows import TokenStream
from jaxllm.train.evaluation.perplexity import measure_perplexity

LENGTHS = (1, 2, 7, 20, 13, 3, 30, 5, 9, 16, 4)
T = 29  # the longest document just fits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama with random parameters."""
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        **{"vocab_size": 96, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    for parameter in model.parameters():
        parameter.data.normal_(float(parameter.ndim == 1), 0.2)
    model.save_pretrained(folder)
    return folder


def documents() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(1, 96, length).astype(np.int32) for length in LENGTHS]


def stream() -> TokenStream:
    starts = np.cumsum([0, *LENGTHS])[:-1]
    return TokenStream(np.concatenate(documents()), starts)


def expected_loss(folder) -> tuple[float, int]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    total, count = 0.0, 0
    for document in documents():
        if len(document) > 1:
            tokens = torch.tensor(document[None].astype(np.int64))
            with torch.no_grad():
                loss = model(tokens, labels=tokens).loss.item()
            total, count = total + loss * (len(document) - 1), count + len(document) - 1
    return total / count, count


@pytest.mark.parametrize(
    ("packing", "shape", "batch_size"),
    examples(
        [
            ("padded", {}, 3),
            ("best_fit", {"data": 2, "fsdp": 2, "tensor": 2}, 4),
            ("best_fit", {}, 64),
            ("padded", {"fsdp": 8}, 8),
        ],
        ("padded", {}, 3),
        ("best_fit", {"data": 2, "fsdp": 2, "tensor": 2}, 4),
    ),
    ids=str,
)
def test_the_loss_is_that_of_transformers(packing, shape, batch_size, folder):
    mesh = make_mesh(**shape, devices=jax.devices()[: math.prod(shape.values())])
    rows, seen = make_rows(stream(), packing, T), []
    with jax.set_mesh(mesh):
        model = load_pretrained(folder, mesh=mesh)
        assert isinstance(model, Decoder)
        found = measure_perplexity(model, rows, batch_size=batch_size, mesh=mesh, show=seen.append)
    loss, tokens = expected_loss(folder)
    assert found.tokens == tokens
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)
    assert seen[-1] == len(rows)


def test_what_cannot_be_measured_is_said(folder):
    model = load_pretrained(folder)
    mesh = make_mesh(devices=jax.devices()[:1])
    one = TokenStream(np.ones(1, np.int32), np.zeros(1, np.int64))
    with jax.set_mesh(mesh), pytest.raises(UserError, match="no token to predict"):
        measure_perplexity(model, make_rows(one, "padded", 4), batch_size=2, mesh=mesh)
    mesh = make_mesh(data=4, fsdp=2)
    with pytest.raises(UserError, match=r"batch_size=4 is not a multiple of data x fsdp = 8"):
        measure_perplexity(model, make_rows(stream(), "padded", 4), batch_size=4, mesh=mesh)
