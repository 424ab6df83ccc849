"""What becomes of the moments of any family: what becomes of its weights, both ways."""

import dataclasses
import json
from functools import partial
from typing import Any

import pytest
import torch
from doubled_moments import assert_doubled, state_like
from hf_cases import CASES
from safetensors.torch import load_file
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


@pytest.mark.parametrize("case", FAMILIES)
def test_moments_go_the_way_of_the_weights(case, tmp_path):
    """Fused projections, experts one by one, layers of several kinds; then back, in both forms."""
    theirs, native = tmp_path / "theirs", tmp_path / "native"
    CASES[case].build().save_pretrained(theirs)
    convert(theirs, native, to="native")  # whose spelling of the weights is that of any export
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
    """Which is the model's: PyTorch loads by numbers alone."""
    model = random_model(head_dim=8)
    save_pretrained(model, tmp_path / "native", format="native")
    state = state_of(model)
    with pytest.raises(CheckpointError, match="nothing says in which order meta-llama has its"):
        convert(tmp_path / "native", tmp_path / "o", to="meta", optimizer=OptimizerExport(state))
    wrong = OptimizerExport(state, order=["norm.weight"])
    with pytest.raises(CheckpointError, match=r"does not fit the model: layers\.0\.attention\."):
        convert(tmp_path / "native", tmp_path / "o", to="meta", optimizer=wrong)
    with pytest.raises(CheckpointError, match="a native checkpoint of a run has its optimizer"):
        convert(tmp_path / "native", tmp_path / "o", to="native", optimizer=wrong)
    with pytest.raises(CheckpointError, match=r"embedding is bfloat16; a run goes on in float32"):
        convert(
            tmp_path / "native", tmp_path / "o", dtype="bfloat16", optimizer=OptimizerExport(state)
        )
    assert [file.name for file in tmp_path.iterdir()] == ["native"]


def test_a_killed_export_goes_on(tmp_path):
    """The moments are units of a conversion as its weights are."""
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
    # All but the last unit; the weights alone are a third.
    assert 0.8 * done.num_bytes < done.num_bytes_kept < done.num_bytes
    files = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir()}
    assert files.keys() >= {"model.safetensors", "optimizer.pt", "scheduler.pt"}
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == files
    assert json.loads(files["config.json"])["model_type"] == "llama"
