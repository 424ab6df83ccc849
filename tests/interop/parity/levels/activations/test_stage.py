"""Forward stage: a wrong window that the inputs do not reach is found in a longer row."""

import dataclasses

import pytest
import transformers
from hf_case import randomize

from jaxllm.config import with_fields
from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import compare
from jaxllm.interop.parity.golden import check_pack, record_checkpoint
from jaxllm.interop.parity.levels.activations import long_row
from jaxllm.interop.parity.render.notes import notes
from jaxllm.interop.parity.render.sentences import headline
from jaxllm.models import build_abstract
from jaxllm.params import named_parameters, with_arrays

WINDOW = 512


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.MistralConfig(
        vocab_size=96,
        max_position_embeddings=2048,
        sliding_window=WINDOW,
        **sizes,
        **heads,
        attn_implementation="eager",
    )
    path = tmp_path_factory.mktemp("window") / "mistral"
    randomize(transformers.MistralForCausalLM(config)).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pair(folder):
    reference = transformers.MistralForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype="float32"
    )
    return reference, load_pretrained(folder, dtype="float32")


def with_window(model, window):
    other = build_abstract(with_fields(model.config, {"attention.window": window}))
    arrays = {name: variable.get_value() for name, variable in named_parameters(model).items()}
    return with_arrays(other, arrays)


@pytest.mark.parametrize("window", [WINDOW, WINDOW + 1, 1024])
def test_a_wrong_window_beyond_the_inputs_is_found(pair, tokens, window):
    reference, model = pair
    given = with_window(model, window)
    report = compare(reference, given, tokens[:1, :64], levels=("logits",))
    assert report.ok == (window == WINDOW), report.first_divergence
    assert [row.path for row in report.rows["logits"]] == ["lm_head", "lm_head of a longer row"]
    assert report.rows["logits"][0].ok, "the inputs do not show it"
    assert report.unseen == ()


def test_a_window_that_nothing_shows_is_named(pair, tokens, monkeypatch):
    monkeypatch.setattr(long_row, "MOST_SCORES", 1000)
    report = compare(*pair, tokens[:1, :64], levels=("logits",))
    assert report.unseen == (f"the attention window of {WINDOW} tokens",)
    assert headline(report) == f"Parity holds; {report.unseen[0]} cannot tell"
    assert any("Cannot tell: the attention window of 512" in note for note in notes(report))
    both = dataclasses.replace(report, unseen=())
    assert headline(both) == "Parity holds"


def test_packs_have_the_longer_row(folder, pair, tmp_path):
    record_checkpoint(folder, tmp_path / "pack", levels=("logits",), batch_size=1)
    report = check_pack(tmp_path / "pack", folder)
    assert report.ok, report.first_divergence
    assert report.rows["logits"][-1].path == "lm_head of a longer row"
