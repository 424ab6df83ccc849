"""The calibration zoo: no false alarm on models that resemble trained ones."""

import pytest
from tiers import examples
from zoo import CONFIGS, WEIGHTS, ZooModel, check, zoo_models

# One model of each kind, benchmarks/power.py compares all of them.
SOME = {
    kind: ZooModel(kind, family, 0)
    for kind, family in zip(
        (*WEIGHTS, *CONFIGS),
        (
            "llama/llama3",
            "gpt2",
            "qwen3",
            "gpt_neox",
            "gemma2",
            "llama/llama3",
            "qwen3",
            "gpt2",
            "llama/llama3",
        ),
        strict=True,
    )
}


@pytest.mark.cases(1, exhaustive=2)
@pytest.mark.parametrize("kind", examples(SOME, "outlier channels x 1000"))
def test_a_correct_model_raises_no_alarm(kind, tmp_path):
    report = check(SOME[kind], tmp_path / "model")
    assert report.ok, report.first_divergence


@pytest.mark.cases(0, exhaustive=1)
@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["outlier channels x 100", "trained"])
def test_training_a_correct_model_raises_no_alarm(kind, tmp_path):
    report = check(SOME[kind], tmp_path / "model", ("gradients", "step", "generate"))
    assert report.ok, report.first_divergence


def test_the_zoo_has_three_hundred_models():
    assert len(set(zoo_models())) >= 300
