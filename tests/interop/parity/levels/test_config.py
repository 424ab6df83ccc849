"""Config level: fields that affect the numbers are compared, others are not."""

import dataclasses
from types import SimpleNamespace

import pytest
from broken_models import configured
from tiny import random_model

from jaxllm.interop.parity import compare
from jaxllm.interop.parity.levels.config import check_config, compare_fields, fields_of
from jaxllm.models import build_abstract


@pytest.mark.parametrize(
    "changes",
    [
        {"norms.eps": 1e-4},
        {"rope.theta": 10200.0},
        {"mlp.activation": "gelu"},
        {"attention.scale": 0.3},
        {"embed_scale": 2.0},
        {"head.softcap": 30.0},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_field_that_affects_the_numbers_must_agree(pair, short, changes):
    llama, model = pair
    report = compare(llama, configured(model, changes), short, levels=("config",))
    [(name, value)] = changes.items()
    assert [row.path for row in report.config if not row.ok] == [f"config.{name}"]
    assert report.first_divergence.ours == repr(value)
    assert report.first_divergence.measured == 1


def test_layer_patterns_are_compared_layer_by_layer(pair, short):
    llama, model = pair
    kinds = (*model.config.pattern, dataclasses.replace(model.config.pattern[0], rope="none"))
    config = dataclasses.replace(model.config, pattern=kinds)
    report = compare(llama, build_abstract(config), short, levels=("config",))
    [row] = [row for row in report.config if not row.ok]
    assert (row.path, row.ours, row.theirs) == (
        "config.pattern.rope",
        "global none",
        "global global",
    )


def test_fields_that_do_not_affect_the_numbers_may_differ(pair, short):
    llama, model = pair
    other = configured(model, {"remat": "full", "max_len": 4096, "init.std": 0.5})
    assert compare(llama, other, short, levels=("config",)).ok


def test_recorded_fields_are_compared_like_those_of_a_reference(pair):
    llama, model = pair
    fields, problems = fields_of(llama, model)
    assert (all(row.ok for row in compare_fields(fields, problems, model)), problems) == (True, [])
    wrong = {row.path for row in compare_fields(fields, [], random_model()) if not row.ok}
    assert "config.num_layers" in wrong


def test_a_recorded_field_with_two_names_fails(pair):
    llama, model = pair
    fields, problems = fields_of(llama, model)
    twice = {**fields, "norm_eps": fields["norms.eps"]}
    rows = check_config([twice, problems], SimpleNamespace(model=model))
    assert [row.theirs for row in rows if not row.ok] == [
        "norms.eps is given twice (norms.eps, norm_eps)"
    ]


def test_a_config_that_cannot_be_read_fails():
    model = random_model()
    [row] = compare_fields(None, ["unknown: size"], model)
    assert (row.path, row.theirs, row.ok) == ("config", "unknown: size", False)
