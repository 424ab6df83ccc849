"""Inputs: reading, drawing, redrawing and validating."""

import dataclasses
import json
import re

import chex
import numpy as np
import pytest
from tiny import random_model

from jaxllm.interop.parity.alignment.inputs import Inputs, draw, is_at_end, sequences_of
from jaxllm.interop.parity.alignment.prompt import FurtherText

MODEL = random_model()


def test_inputs_are_read_from_files_and_padded(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert Inputs.read(tmp_path / "a.npy").target.tolist() == [[0, 1, 2], [3, 4, 5]]
    np.savez(tmp_path / "a.npz", source=np.ones((1, 2)), target=np.zeros((1, 3)))
    assert Inputs.read(tmp_path / "a.npz").arrays.keys() == {"source", "target"}
    np.savez(tmp_path / "b.npz", src=np.ones((1, 2)), target=np.zeros((1, 3)))
    with pytest.raises(ValueError, match="has src, target; it needs target and may have labels, s"):
        Inputs.read(tmp_path / "b.npz")
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"source": [[1, 2]], "target": [[5, 6, 7], [8]]}))
    found = {name: array.tolist() for name, array in Inputs.read(file).arrays.items()}
    assert found == {
        "source": [[1, 2]],
        "target": [[5, 6, 7], [8, 0, 0]],
        "target_mask": [[1, 1, 1], [1, 0, 0]],
    }
    file.write_text("[1, 2]")
    with pytest.raises(ValueError, match="target is not a list of lists of integers"):
        Inputs.read(file)
    with pytest.raises(ValueError, match=r"not a \.npy, \.npz or \.json file"):
        Inputs.read(tmp_path / "a.txt")


def test_labels_may_have_the_name_of_earlier_versions(tmp_path):
    arrays = {"target": np.zeros((1, 3)), "wanted": np.ones((1, 2))}
    np.savez(tmp_path / "old.npz", **arrays)
    for inputs in (Inputs.from_arrays(arrays), Inputs.read(tmp_path / "old.npz")):
        assert inputs.labels.tolist() == [[1, 1]]
        assert inputs.arrays.keys() == {"target", "labels"}


def drawn(masked=("target_mask",), **options):
    return draw(MODEL, masked, **{"num_tokens": 40, "batch_size": 2, "seed": 0, **options})


def test_the_last_row_is_padded_at_its_end():
    inputs = drawn()
    chex.assert_shape(inputs.target, (2, 40))
    assert inputs.target_mask.sum(1).tolist() == [40, 30]
    assert is_at_end(inputs.target_mask)
    assert inputs.num_tokens == 70
    chex.assert_shape(drawn(num_tokens=10**6).target, (2, MODEL.config.max_len))


def test_redrawn_inputs_have_other_tokens_and_the_same_padding():
    inputs = drawn()
    other = inputs.redrawn(MODEL, 1)
    chex.assert_equal_shape([other.target, inputs.target])
    assert not np.array_equal(other.target, inputs.target)
    np.testing.assert_array_equal(other.target_mask, inputs.target_mask)


def test_redrawn_inputs_are_further_text_where_there_is_one():
    def later(name, shape, number):
        return np.full(shape, 10 * number + len(name))

    inputs = dataclasses.replace(drawn(), further=FurtherText("text", later))
    assert set(inputs.shortened(20).redrawn(MODEL, 3).target.ravel()) == {36}
    assert inputs.arrays.keys() == {"target", "target_mask"}
    assert inputs.digest == drawn().digest


def test_the_padding_token_is_replaced():
    inputs = Inputs(np.array([[1, 95, 2]]))
    assert inputs.replace_token(95, MODEL).target.tolist() == [[1, 0, 2]]
    assert inputs.replace_token(None, MODEL) is inputs


def test_models_of_tokens_need_no_training_targets():
    inputs = drawn()
    assert inputs.with_labels(MODEL) is inputs
    assert sequences_of(MODEL)["target"].size == MODEL.config.vocab_size


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"target": np.zeros((2, 40))}, "it must be integers"),
        ({"target": np.full((2, 40), 96)}, "ids from 96 to 96; the vocabulary has 0 to 95"),
        ({"target_mask": np.ones((2, 39))}, r"has shape \(2, 39\), but target has \(2, 40\)"),
        ({"source": np.zeros((2, 40), int)}, "source is given, which a Decoder does not take"),
        ({"target_mask": np.eye(2, 40)}, "target_mask hides tokens that the reference, which"),
    ],
)
def test_invalid_inputs_are_described(changes, problem):
    assert drawn().problems(MODEL, ()) == []
    found = "; ".join(dataclasses.replace(drawn(), **changes).problems(MODEL, ()))
    assert re.search(problem, found)


def test_shortened_inputs_keep_their_share_of_padding():
    tokens = np.arange(2 * 40).reshape(2, 40)
    mask = np.ones((2, 40), np.int32)
    mask[1, 30:] = 0
    short = Inputs(tokens, target_mask=mask).shortened(20)
    np.testing.assert_array_equal(short.target, tokens[:, :20])
    assert short.target_mask.sum(1).tolist() == [20, 15]
    left = Inputs(tokens, target_mask=mask[:, ::-1]).shortened(20)
    assert left.target_mask.sum(1).tolist() == [20, 15]
    assert left.target_mask[1, 0] == 0
    same = Inputs(tokens, target_mask=mask).shortened(50)
    np.testing.assert_array_equal(same.target_mask, mask)


def test_equal_inputs_have_equal_digests():
    tokens = np.arange(12).reshape(2, 6)
    masked = Inputs(tokens, target_mask=np.ones((2, 6), np.int32))
    assert Inputs(tokens).digest == Inputs(tokens.copy()).digest
    others = (Inputs(tokens + 1), Inputs(tokens.reshape(3, 4)), masked, Inputs(tokens, tokens))
    assert len({Inputs(tokens).digest, *(other.digest for other in others)}) == 5
