"""The calibration zoo: no false alarm on models that resemble trained ones."""

import pytest
import torch
from tiers import examples
from zoo import (
    CASES,
    CONFIGS,
    FAMILIES,
    IMAGES,
    OTHERS,
    PAIRS,
    QUERY_NORM,
    WEIGHTS,
    ZooModel,
    build,
    check,
    zoo_models,
)

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


# New kinds of architecture: experts, latent attention, sinks, encoders.
OTHER_KINDS = {
    ZooModel("saturated attention", "qwen3", 1),
    ZooModel("outlier channels x 1000", "deepseek_v3", 0),
    ZooModel("attention sink", "gpt_oss", 0),
    ZooModel("saturated attention", "t5", 0),
    ZooModel("outlier channels x 100", "bart", 0),
}


@pytest.mark.cases(1, exhaustive=2)
@pytest.mark.parametrize("member", sorted(OTHER_KINDS), ids=str)
def test_other_kinds_of_architecture_raise_no_alarm(member, tmp_path):
    report = check(member, tmp_path / "model")
    assert report.ok, report.first_divergence


@pytest.mark.cases(0, exhaustive=3)
@pytest.mark.exhaustive
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
@pytest.mark.parametrize("kind", sorted(set(WEIGHTS) - {"trained"}))
def test_every_family_raises_no_alarm(kind, family, tmp_path):
    report = check(ZooModel(kind, family, 0), tmp_path / "model")
    assert report.ok, report.first_divergence


@pytest.mark.cases(3, exhaustive=5)
@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_saturated_attention_is_planted_in_every_family(family):
    planted, plain = (build(ZooModel(kind, family, 0)) for kind in ("saturated attention", ""))
    pairs = zip(planted.named_parameters(), plain.parameters(), strict=True)
    changed = [name for (name, one), other in pairs if not torch.equal(one, other)]
    norms = [name for name, _ in plain.named_parameters() if QUERY_NORM.search(name)]
    if norms:  # not every layer has them: some mix tokens by a recurrence
        assert set(changed) == set(norms)
    else:
        assert len(changed) >= plain.config.num_hidden_layers


def test_the_zoo_has_every_family_of_text():
    """Families that a case of another name reads are that architecture with other weights."""
    names = {member.family.partition("/")[0] for member in zoo_models()}
    cases = {name.partition("/")[0] for name in (*CASES, *PAIRS)} - set(IMAGES)
    assert names >= cases


def test_the_zoo_has_six_hundred_models():
    assert len(set(zoo_models())) >= 600
