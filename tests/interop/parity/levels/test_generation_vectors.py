"""Generation level for models of vectors."""

import dataclasses

import numpy as np
import pytest
import source_cases
from broken_models import changed

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity.alignment.inputs import Inputs
from jaxllm.interop.parity.alignment.prompt import random_vectors
from jaxllm.interop.parity.levels.generation_vectors import (
    NEW_VECTORS,
    PROMPT_LENGTH,
    VECTORS,
    continue_vectors,
    judge_vectors,
)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    """A reference that takes vectors, its JAX model, and inputs."""
    folder = tmp_path_factory.mktemp("vectors")
    reference = source_cases.write("components-autoregressive", folder)
    model = load_pretrained(folder, dtype="float32")
    given = Inputs(random_vectors((2, 30, model.config.input_dim), 0)).with_labels(model)
    return reference, model, given


@pytest.fixture(scope="module")
def continued(vectors):
    return continue_vectors(vectors[0], vectors[2])


def test_the_prompt_is_the_beginning_of_the_inputs(vectors, continued):
    np.testing.assert_array_equal(continued.prompt.target, vectors[2].target[:, :PROMPT_LENGTH])
    assert continued.prompt.labels is None
    assert continued.vectors_BNO.shape[:2] == (2, NEW_VECTORS)
    found, size = continued.distances.spread(VECTORS), np.linalg.norm(continued.vectors_BNO)
    assert 0 < found.reference <= found.scale < found.limit < 1e-4 * size


def test_the_models_vectors_are_compared_with_the_references(vectors, continued):
    _, model, _ = vectors
    [row] = judge_vectors(model, continued)
    assert (row.path, row.verdict) == ("generate.vectors", "equal within rounding")
    other = changed(model, "output_proj.kernel", lambda kernel: kernel * 1.01)
    assert not judge_vectors(other, continued)[0].ok


def test_outputs_of_another_width_give_a_single_vector(vectors):
    reference, model, given = vectors
    wide = dataclasses.replace(given, labels=np.zeros((*given.target.shape[:2], 1), np.float32))
    assert model.config.input_dim != 1
    assert continue_vectors(reference, wide).vectors_BNO.shape[1] == 1
