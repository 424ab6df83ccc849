"""Weights level: every tensor is compared bit by bit."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch
from broken_models import changed

from jaxllm.interop.parity import compare
from jaxllm.interop.parity.both_sides import open_both
from jaxllm.interop.parity.levels.sides import Comparison, JaxSide
from jaxllm.interop.parity.levels.weights import (
    check_weights,
    differing_bits,
    digest,
    record_weights,
)


def test_a_single_flipped_bit_is_found(pair, short):
    llama, model = pair

    def flip(kernel):
        bits = np.asarray(kernel).view(np.uint32).copy()
        bits[1, 3, 5] ^= 1
        return jnp.asarray(bits.view(np.float32))

    broken = changed(model, "layers.0:2.mlp.up_proj.kernel", flip)
    report = compare(llama, broken, short, levels=("weights", "config"))
    assert report.verdicts == {"weights": False, "config": True}
    first = report.first_divergence
    assert (first.path, first.parameter) == ("layers.1.mlp.up_proj", "kernel")
    assert (first.measured, first.floor, first.threshold) == (1, 0, 0)
    assert first.stored == ("model.layers.1.mlp.up_proj.weight",)
    assert sum(row.differing_bits for row in report.weights) == 1
    assert {name for row in report.weights for name in row.stored} == set(llama.state_dict())


def test_tensors_missing_on_one_side_are_found(make_llama, pair, short):
    _, model = pair
    biased = make_llama(num_hidden_layers=2, attention_bias=True)
    report = compare(biased, model, short, levels=("weights",))
    wrong = [row for row in report.weights if not row.ok and row.parameter == "bias"]
    assert {row.path for row in wrong} == {
        f"layers.{i}.attn.{name}_proj" for i in range(2) for name in "qkvo"
    }
    assert {row.remark for row in wrong} == {"the model has no such tensor"}


def test_tensors_of_another_shape_are_found(make_llama, pair, short):
    _, model = pair
    report = compare(
        make_llama(num_hidden_layers=2, intermediate_size=40), model, short, levels=("weights",)
    )
    [row] = [row for row in report.weights if row.path == "layers.0.mlp.gate_proj"]
    assert row.differing_bits == row.num_bits
    assert "has shape (40, 32) in the reference, (56, 32) in the model" in row.remark


def test_a_tied_copy_is_compared_with_its_original(make_llama, convert, short):
    llama = make_llama(num_hidden_layers=1, tie_word_embeddings=True)
    model = convert(llama)
    assert compare(llama, model, short, levels=("weights",)).ok
    llama.lm_head.weight = torch.nn.Parameter(llama.lm_head.weight.detach() + 1)
    report = compare(llama, model, short, levels=("weights",))
    assert [row.stored for row in report.weights if not row.ok] == [("lm_head.weight",)]


def test_differing_bits_are_counted():
    ours = np.array([1.0, -2.0, 0.0], np.float32)
    theirs = ours.copy()
    assert differing_bits(ours, theirs) == 0
    theirs[2] = -0.0  # equal as a number, but one bit differs
    theirs[0] = np.nextafter(np.float32(1), np.float32(2))
    assert differing_bits(ours, theirs) == 2
    assert differing_bits(ours[:2], theirs) == 96


def test_arrays_of_two_dtypes_differ_whatever_a_cast_would_give():
    ours = np.array([1.0, 1 + 2.0**-20], np.float32)
    for narrow in (np.float16, ml_dtypes.bfloat16, np.float64):
        theirs = ours.astype(narrow)
        assert differing_bits(ours, theirs) == 8 * max(ours.nbytes, theirs.nbytes)
        assert differing_bits(theirs, ours) > 0
        assert digest(ours) != digest(theirs)
        assert differing_bits(theirs, theirs.copy()) == 0
    assert differing_bits(np.arange(3, dtype=np.int32), np.arange(3)) == 0
    assert differing_bits(np.arange(3, dtype=np.int32), np.arange(1, 4)) > 0
    assert digest(np.arange(3, dtype=np.int32)) == digest(np.arange(3))


def test_bits_of_narrow_tensors_are_compared_as_they_are(make_llama, tmp_path, short):
    make_llama(num_hidden_layers=2).save_pretrained(tmp_path)
    reference, model = open_both(tmp_path, dtype="bfloat16")
    report = compare(reference, model, short, levels=("weights",))
    assert report.ok, report.first_divergence
    assert {row.num_bits % 16 for row in report.weights} == {0}
    sizes = {(row.path, row.parameter): row.num_bits for row in report.weights}
    assert sizes["final_norm", "scale"] == 16 * 32
    reference.model.norm.weight.data = reference.model.norm.weight.data.float()
    report = compare(reference, model, short, levels=("weights",))
    [wrong] = [row for row in report.weights if not row.ok]
    assert (wrong.path, wrong.measured) == ("final_norm", 32 * 32)
    assert wrong.remark == "float32 in the reference, bfloat16 in the model"


def test_recorded_digests_detect_a_changed_weight(pair):
    llama, model = pair
    digests = record_weights(Comparison(reference=llama, model=model, inputs=None, levels=()))
    ours = JaxSide(model=model, levels=())
    assert all(row.ok and not row.remark for row in check_weights(digests, ours))
    other = JaxSide(model=changed(model, "final_norm.scale", lambda x: x + 1), levels=())
    assert [row.path for row in check_weights(digests, other) if not row.ok] == ["final_norm"]
    del digests["final_norm.scale"]
    [row] = [row for row in check_weights(digests, ours) if not row.ok]
    assert row.remark == "missing in the reference, (32,) in the model"
