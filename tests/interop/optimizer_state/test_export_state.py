"""Moments of any family are converted like its weights, in both directions."""

import dataclasses
import json
from functools import partial
from typing import Any

import pytest
import torch
from doubled_moments import assert_doubled, state_like
from hf_cases import CASES
from safetensors.torch import load_file
from tiers import examples
from tiny import random_model

from jaxllm.interop import (
    CheckpointError,
    OptimizerExport,
    convert,
    load_training_state,
    save_pretrained,
)
from jaxllm.optimizer_state import AdamWState
from jaxllm.params import named_parameters

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


FAMILIES = ["phi3", "gpt_neox", "mixtral", "gemma2", "llama4_text"]


@pytest.mark.cases(1)
@pytest.mark.parametrize("case", examples(FAMILIES, *list(FAMILIES)[:2]))
def test_moments_are_converted_like_the_weights(case, tmp_path):
    """Fused projections, separate experts, layers of several kinds; then exported in both forms."""
    theirs, native = tmp_path / "theirs", tmp_path / "native"
    CASES[case].build().save_pretrained(theirs)
    convert(theirs, native, to="native")  # its export has the same tensor names as any other
    convert(native, tmp_path / "plain")
    weights = load_file(tmp_path / "plain" / "model.safetensors")
    torch.save(state_like(weights), tmp_path / "plain" / "optimizer.pt")
    model, state = load_training_state(tmp_path / "plain")
    assert_doubled(model, state)
    exported = dataclasses.replace(state, learning_rate=2e-3)
    convert(native, tmp_path / "dcp", optimizer=OptimizerExport(exported, "dcp"))
    convert(native, tmp_path / "dict", optimizer=OptimizerExport(exported, order=list(weights)))
    for form in ("dcp", "dict"):
        again, found = load_training_state(tmp_path / form)
        assert_doubled(again, found)
        assert (found.step, found.learning_rate, found.b2) == (3, 2e-3, 0.95)
        assert found.weight_decay == state.weight_decay


def state_of(model: Any, **changes: object) -> AdamWState:
    arrays = {name: v.get_value() for name, v in named_parameters(model).items()}
    state = AdamWState(
        step=3,
        mu=arrays,
        nu=arrays,
        learning_rate=1e-3,
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=dict.fromkeys(arrays, 0.1),
    )
    return dataclasses.replace(state, **changes)


def test_an_export_needs_the_order_of_the_parameters(tmp_path):
    """PyTorch loads a state dict by number only, so the model's order is needed."""
    model = random_model(head_dim=8)
    save_pretrained(model, tmp_path / "native", format="native")
    state = state_of(model)
    with pytest.raises(
        CheckpointError, match="the order of the parameters of meta-llama is unknown"
    ):
        convert(tmp_path / "native", tmp_path / "o", to="meta", optimizer=OptimizerExport(state))
    wrong = OptimizerExport(state, order=["norm.weight"])
    with pytest.raises(CheckpointError, match=r"name different parameters: layers\.0\.attention\."):
        convert(tmp_path / "native", tmp_path / "o", to="meta", optimizer=wrong)
    with pytest.raises(CheckpointError, match="a native run already holds its optimizer state"):
        convert(tmp_path / "native", tmp_path / "o", to="native", optimizer=wrong)
    with pytest.raises(
        CheckpointError, match=r"embedding is bfloat16, but resuming a run needs float32"
    ):
        convert(
            tmp_path / "native", tmp_path / "o", dtype="bfloat16", optimizer=OptimizerExport(state)
        )
    assert [file.name for file in tmp_path.iterdir()] == ["native"]


def test_a_killed_export_resumes(tmp_path):
    """Moments are units of a resumable conversion, like weights."""
    model = random_model(head_dim=8)
    save_pretrained(model, tmp_path / "native", format="native")
    optimizer = OptimizerExport(state_of(model))
    convert(tmp_path / "native", tmp_path / "whole", optimizer=optimizer)

    def kill(done: int, total: int) -> None:
        if done == total:
            raise OSError("killed")

    begin = partial(convert, tmp_path / "native", tmp_path / "out", optimizer=optimizer)
    with pytest.raises(OSError, match="killed"):
        begin(progress=kill, workers=1)
    done = begin()
    # All but the last unit is kept; the weights are a third of the bytes.
    assert 0.8 * done.num_bytes < done.num_bytes_kept < done.num_bytes
    files = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert files.keys() >= {"model.safetensors", "optimizer.pt", "scheduler.pt"}
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == files
    assert json.loads(files["config.json"])["model_type"] == "llama"
