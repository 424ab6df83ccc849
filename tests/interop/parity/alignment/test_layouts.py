"""Layouts: outputs with the model's layout are not copied, others are."""

import numpy as np
from tiny import random_model

from jaxllm.config import RopeConfig
from jaxllm.interop.families import Layout, RuleTable
from jaxllm.interop.families.common.decoder_axes import decoder_sizes
from jaxllm.interop.families.common.described.rules import grouped_qkv_rules
from jaxllm.interop.families.common.torch_modules import linear_rules
from jaxllm.interop.families.huggingface.pre_norm.llama import LLAMA
from jaxllm.interop.parity.alignment.activations import derive_taps
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.layouts import Alignment


def alignment(**changes):
    model = random_model(num_layers=1, **changes)
    table = LLAMA.table(model.config, Layout())
    return Alignment(derive_taps(table, model, Inputs(np.zeros((2, 5), int))))


def aligned(outputs, **options):
    return alignment().align(outputs, **options)


def test_streams_are_views_and_heads_are_transposed():
    stream_BTD, query_BNTH = np.random.rand(2, 5, 32), np.random.rand(2, 4, 5, 16)
    outputs = {"model.norm": stream_BTD, "model.layers.0.self_attn@query": query_BNTH}
    found = aligned({name: array.astype(np.float32) for name, array in outputs.items()})
    np.testing.assert_array_equal(found["final_norm"], stream_BTD.astype(np.float32))
    expected = query_BNTH.astype(np.float32).swapaxes(1, 2)
    np.testing.assert_array_equal(found["layers.0.attn.q"], expected)


def test_only_scores_themselves_show_which_keys_are_masked():
    scores = np.full((2, 4, 5, 5), -3e38, np.float32)
    scores[..., 0] = 1.0
    outputs = {"model.layers.0.self_attn@scores": scores}
    found = aligned(outputs)["layers.0.attn.scores"]
    assert np.isneginf(found[..., 1:]).all()
    assert (found[..., 0] == 1).all()
    differences = aligned(outputs, are_differences=True)["layers.0.attn.scores"]
    assert np.isfinite(differences).all()


def test_parts_that_go_by_an_index_are_split_by_it_first():
    """As Falcon's queries of each group of heads: those of a key, the key, its value."""
    model = random_model(num_layers=1)
    rules = (
        *grouped_qkv_rules(model.config, "layers.{L}.qkv"),
        *linear_rules("layers.{L}.out", "layers.{L}.attn.o_proj", "D", "(N H)"),
    )
    table = RuleTable(rules, {**decoder_sizes(model.config), "g": 2})
    whole = np.random.rand(2, 5, 2, 4, 16).astype(np.float32)  # K, and the heads of a group
    taps = derive_taps(table, model, Inputs(np.zeros((2, 5), int)))
    found = Alignment(taps).align({"layers.0.qkv": whole.reshape(2, 5, -1)})
    queries = whole[:, :, :, :2].reshape(2, 5, 4, 16)
    np.testing.assert_array_equal(found["layers.0.attn.q_proj"], queries)
    np.testing.assert_array_equal(found["layers.0.attn.k_proj"], whole[:, :, :, 2])
    np.testing.assert_array_equal(found["layers.0.attn.v_proj"], whole[:, :, :, 3])


def test_alignments_of_equal_layouts_have_equal_digests():
    assert alignment().digest == alignment().digest
    other = alignment(rope=RopeConfig(layout="interleaved"))
    assert alignment().digest != other.digest
