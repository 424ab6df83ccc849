"""`parity mesh`: compares every layout with a single device and names the one with a bug."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
import yaml
from tiny import TINY

from jaxllm.cli import main
from jaxllm.config import ExpertsConfig, LayerKind, with_fields
from jaxllm.numerics.judgement import ENOUGH
from jaxllm.train import ConfigError, TrainConfig, step
from jaxllm.train.config import to_dict
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.verify import equality
from jaxllm.train.verify.equality import compare_variants
from jaxllm.train.verify.noise import EQUIVALENTS
from jaxllm.train.verify.variants import Step, Variant

MIXED = Variant(mesh=(("fsdp", 2), ("tensor", 2)))
ACCUMULATED = Variant(accumulate=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("".join(chr(32 + i * i % 91) for i in range(3000)))
    return TrainConfig(
        output="nowhere",
        steps=10,
        batch_size=8,
        seq_len=16,
        model=with_fields(TINY, {"mlp.bias": True}, vocab_size=256, num_layers=2),
        data=DataConfig(text=(str(text),), held_out=0),
    )


@pytest.mark.exhaustive
def test_correct_variants_match_a_single_device(config):
    found = compare_variants(config, chosen=[MIXED, ACCUMULATED])
    assert found.first is None, found.summary
    assert found.summary == "All 2 variants match the single-device step."
    for outcome in found.outcomes:
        names = {d.parameter for d in outcome.differences if d.what == "first moment"}
        assert "layers.1.mlp.up_proj.bias" in names
        assert {d.parameter for d in outcome.differences if d.what == "update"} == names
        # The noise was measured, and is not so large that every step would pass.
        assert all(d.is_decided for d in outcome.differences)
        moments = [d for d in outcome.differences if d.what.endswith("moment")]
        assert all(0 < d.floor < d.threshold <= 3e-5 for d in moments)
    mixed = found.outcomes[0]
    assert any(d.measured > 0 for d in mixed.differences), "the same program was run twice"


@pytest.mark.exhaustive
def test_experts_at_their_capacity_limit_match_a_single_device(config, really_compiling):
    experts = ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24, capacity=40, aux_weight=0.1)
    pattern = (LayerKind(), LayerKind(mlp="experts"))
    model = dataclasses.replace(config.model, experts=experts, pattern=pattern)
    run = dataclasses.replace(config, model=model)
    found = compare_variants(run, chosen=[Variant(mesh=(("data", 4), ("expert", 2)))])
    assert found.first is None, found.summary


def scaled_on_mesh(monkeypatch, axis: str, parameter: str) -> None:
    """Injects a bug: a parameter's gradient is halved, as if half of a mesh axis were left out."""
    correct = step.accumulate

    def wrong(*args):
        total, grads = correct(*args)
        if jax.sharding.get_abstract_mesh().shape[axis] > 1:
            module, name = parameter.split(".")
            grads[module][name] = 0.5 * grads[module][name]
        return total, grads

    monkeypatch.setattr(step, "accumulate", wrong)


@pytest.mark.exhaustive
def test_a_missing_sum_over_a_mesh_axis_is_found(config, monkeypatch):
    scaled_on_mesh(monkeypatch, "tensor", "final_norm.scale")
    only_rows = Variant(mesh=(("fsdp", 2),))
    found = compare_variants(config, chosen=[only_rows, MIXED, ACCUMULATED])
    assert [outcome.ok for outcome in found.outcomes] == [True, False, True]
    assert found.first.variant == "fsdp=2 x tensor=2"
    assert found.first.worst.name == "first moment of final_norm.scale"
    assert "1 of 3 variants" in found.summary
    assert "fsdp=2 x tensor=2: the error of its first moment of final_norm.scale" in found.summary


@pytest.mark.exhaustive
def test_averaging_microbatch_means_is_found(config, monkeypatch):
    """A common bug: averaging the means of microbatches in place of averaging over all targets."""
    correct = step.accumulate

    def wrong(value_and_grad, params, batch, microbatches, *key):
        targets = batch["mask"].sum() / microbatches

        def averaged(params, part, *key):
            scale = targets / jax.numpy.maximum(part["mask"].sum(), 1)
            return jax.tree.map(lambda x: x * scale, value_and_grad(params, part, *key))

        function = averaged if microbatches > 1 else value_and_grad
        return correct(function, params, batch, microbatches, *key)

    monkeypatch.setattr(step, "accumulate", wrong)
    found = compare_variants(config, chosen=[ACCUMULATED])
    assert found.first.variant == "one device, accumulate 2"


def test_suspect_differences_are_decided_by_more_evaluations(config, monkeypatch):
    """A mistake of the size of rounding: equal, then decided by more evaluations, then certain."""
    rng, counts = np.random.default_rng(0), []
    gradient = rng.standard_normal(3000).astype(np.float32)

    def evaluated(strength=0.0):
        along = strength + 2e-7 * rng.standard_normal()  # some of the noise is shared
        noise = 1e-6 * rng.standard_normal(len(gradient)) + along * np.roll(gradient, 1)
        moments = {"first_moment": {"kernel": gradient + noise}, "second_moment": {"kernel": 0.0}}
        unchanged = {"update": {"kernel": 0 * gradient}, "before": {"kernel": 1 + 0 * gradient}}
        return Step(loss=1.0, grad_norm=1.0, **moments, **unchanged)

    def more(program, model, weights, batch, seed, count):
        counts.append(count)
        return (evaluated() for _ in range(count))

    monkeypatch.setattr(equality, "equivalent_steps", more)
    outcomes = []
    for strength in (0.0, *np.geomspace(3e-7, 3e-5, 24)):
        wrong = functools.partial(evaluated, strength)
        monkeypatch.setattr(
            equality,
            "Program",
            lambda config, one, wrong=wrong: (
                lambda *given: evaluated() if one == Variant() else wrong()
            ),
        )
        judge, before = equality.Judge(config, {}, {}, 1e-3), len(counts)
        outcomes.append((judge.outcome(MIXED).ok, counts[before:]))
        assert not judge.outcome(Variant()).differences[2].is_suspect
    assert outcomes[0] == (True, [])
    assert outcomes[-1] == (False, []), "what is certain needs no more evaluations"
    assert (False, [ENOUGH - EQUIVALENTS]) in outcomes


@pytest.mark.exhaustive
def test_a_nan_loss_fails(config, monkeypatch):
    correct = step.accumulate
    nan = lambda *args: jax.tree.map(lambda x: x * float("nan"), correct(*args))  # noqa: E731
    wrong = lambda *args: (nan if args[3] > 1 else correct)(*args)  # noqa: E731
    monkeypatch.setattr(step, "accumulate", wrong)
    found = compare_variants(config, chosen=[ACCUMULATED])
    assert not found.outcomes[0].ok
    json.dumps(found.to_json(), allow_nan=False)


def test_an_indivisible_batch_is_rejected_before_anything_runs(config):
    odd = dataclasses.replace(config, batch_size=6)
    with pytest.raises(ConfigError) as error:
        compare_variants(odd)
    lines = str(error.value).splitlines()
    assert "fsdp=8: batch_size / accumulate = 6 sequences is not divisible" in str(error.value)
    assert len(lines) > 3


@pytest.mark.exhaustive
@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_the_exit_status_of_the_command_is_the_verdict(
    config, monkeypatch, tmp_path, capsys, options
):
    from jaxllm.train.verify import equality

    monkeypatch.setattr(equality, "variants", lambda config, count: [MIXED])
    scaled_on_mesh(monkeypatch, "tensor", "final_norm.scale")
    plain = json.loads(json.dumps(to_dict(config)))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(plain))
    command = ["parity", "mesh", str(tmp_path / "run.yaml"), "--batch-size", "4"]
    assert main([*command, *options]) == 1
    out = capsys.readouterr().out
    if options:
        assert json.loads(out)["variants"][0]["worst"]["parameter"] == "final_norm.scale"
    else:
        assert "final_norm.scale" in out


def test_a_folder_named_mesh_is_treated_as_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mesh").mkdir()
    assert main(["parity", "./mesh"]) == 1
    assert "mesh is not a checkpoint: config.json is missing" in capsys.readouterr().err
