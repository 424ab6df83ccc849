"""`parity mesh`: every layout is judged against one device, and a bug in one of them is named."""

import dataclasses
import json

import jax
import pytest
import yaml
from tiny import TINY

from jaxllm.cli import main
from jaxllm.config import Experts, LayerKind, with_fields
from jaxllm.train import ConfigError, TrainConfig, step
from jaxllm.train.config import to_dict
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.verify.equality import compare_variants
from jaxllm.train.verify.variants import Variant

MIXED = Variant(mesh=(("fsdp", 2), ("tensor", 2)))
IN_PARTS = Variant(accumulate=2)


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


def test_honest_variants_compute_what_one_device_computes(config):
    found = compare_variants(config, chosen=[MIXED, IN_PARTS])
    assert found.first is None, found.summary
    assert found.summary == "2 variants compute what one device computes."
    for outcome in found.outcomes:
        names = {d.parameter for d in outcome.differences if d.what == "gradient"}
        assert "layers.1.mlp.up_proj.bias" in names
        assert {d.parameter for d in outcome.differences if d.what == "update"} == names
        # Noise was measured: not a threshold that all pass.
        assert all(d.threshold <= 1e-4 for d in outcome.differences)
        assert all(d.floor > 0 for d in outcome.differences if d.what == "gradient")
    mixed = found.outcomes[0]
    assert any(d.measured > 0 for d in mixed.differences), "the same program was run twice"


def test_experts_that_fill_up_are_compared(config, really_compiling):
    experts = Experts(num_experts=4, top_k=2, mlp_dim=24, capacity=40, aux_weight=0.1)
    pattern = (LayerKind(), LayerKind(mlp="experts"))
    model = dataclasses.replace(config.model, experts=experts, pattern=pattern)
    run = dataclasses.replace(config, model=model)
    found = compare_variants(run, chosen=[Variant(mesh=(("data", 4), ("expert", 2)))])
    assert found.first is None, found.summary


def scaled_on_mesh(monkeypatch, axis: str, parameter: str) -> None:
    """A bug: the gradient of a parameter is summed over one half of a mesh axis."""
    honest = step.accumulate

    def wrong(*args):
        total, grads = honest(*args)
        if jax.sharding.get_abstract_mesh().shape[axis] > 1:
            module, name = parameter.split(".")
            grads[module][name] = 0.5 * grads[module][name]
        return total, grads

    monkeypatch.setattr(step, "accumulate", wrong)


def test_a_sum_that_a_mesh_leaves_out_is_named(config, monkeypatch):
    scaled_on_mesh(monkeypatch, "tensor", "final_norm.scale")
    only_rows = Variant(mesh=(("fsdp", 2),))
    found = compare_variants(config, chosen=[only_rows, MIXED, IN_PARTS])
    assert [outcome.ok for outcome in found.outcomes] == [True, False, True]
    assert found.first.variant == "fsdp=2 x tensor=2"
    assert found.first.worst.name == "gradient of final_norm.scale"
    assert "1 of 3 variants" in found.summary
    assert "fsdp=2 x tensor=2: its gradient of final_norm.scale" in found.summary


def test_microbatches_that_are_weighed_alike_are_found(config, monkeypatch):
    """A bug of many trainers: the mean of the microbatches' means, not of all targets."""
    honest = step.accumulate

    def wrong(value_and_grad, params, batch, microbatches, *key):
        targets = batch["mask"].sum() / microbatches

        def weighed(params, part, *key):
            share = targets / jax.numpy.maximum(part["mask"].sum(), 1)
            return jax.tree.map(lambda x: x * share, value_and_grad(params, part, *key))

        found = weighed if microbatches > 1 else value_and_grad
        return honest(found, params, batch, microbatches, *key)

    monkeypatch.setattr(step, "accumulate", wrong)
    found = compare_variants(config, chosen=[IN_PARTS])
    assert found.first.variant == "one device, accumulate 2"


def test_a_loss_that_is_not_a_number_is_wrong(config, monkeypatch):
    honest = step.accumulate
    nan = lambda *args: jax.tree.map(lambda x: x * float("nan"), honest(*args))  # noqa: E731
    real = lambda *args: (nan if args[3] > 1 else honest)(*args)  # noqa: E731
    monkeypatch.setattr(step, "accumulate", real)
    found = compare_variants(config, chosen=[IN_PARTS])
    assert not found.outcomes[0].ok
    json.dumps(found.to_json(), allow_nan=False)


def test_what_cannot_be_laid_out_is_refused_at_once(config):
    odd = dataclasses.replace(config, batch_size=6)
    with pytest.raises(ConfigError) as error:
        compare_variants(odd)
    lines = str(error.value).splitlines()
    assert "fsdp=8: batch_size / accumulate = 6 sequences do not divide" in str(error.value)
    assert len(lines) > 3


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["table", "json"])
def test_the_command_says_it_by_its_exit_status(config, monkeypatch, tmp_path, capsys, options):
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


def test_a_folder_called_mesh_is_still_a_checkpoint(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mesh").mkdir()
    assert main(["parity", "./mesh"]) == 1
    assert "mesh has no config.json" in capsys.readouterr().err
