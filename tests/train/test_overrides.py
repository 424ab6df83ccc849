"""Overrides: how arguments are split, which fields they set, and where a value came from."""

import pytest
from kinds import CONFIGS
from tiny import TINY

from jaxllm.config import DecoderConfig, to_dict
from jaxllm.train import TrainConfig
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.overrides import Override, apply_overrides, correct_names, parse_overrides

CLASSES = {"model": DecoderConfig, "data": DataConfig}
DATA = {"steps": 3, "model": to_dict(TINY), "mesh": {"fsdp": 2}}


def applied(*arguments: str, data: dict = DATA):
    return apply_overrides(data, parse_overrides(arguments), TrainConfig, CLASSES)


def test_arguments_are_split_into_options_with_their_values():
    assert parse_overrides(["--a.b-c", "1", "--d=-2", "--e", "--f", "x", "y"]) == [
        Override("--a.b-c", ("1",)),
        Override("--d", ("-2",)),
        Override("--e", ()),
        Override("--f", ("x", "y")),
    ]
    assert Override("--a.b-c", ("1",)).path == ("a", "b_c")
    assert str(Override("--f", ("x", "y"))) == "--f x y"


@pytest.mark.parametrize(
    ("arguments", "path", "value"),
    [
        (["--steps", "7"], ["steps"], "7"),
        (["--optimizer.learning-rate=1e-3"], ["optimizer", "learning_rate"], "1e-3"),
        (["--data.text", "a", "b"], ["data", "text"], ["a", "b"]),
        (["--data.text", "None"], ["data", "text"], None),
        (["--init-from", "None"], ["init_from"], None),
        (["--output", "None"], ["output"], "None"),
        (["--model.scan-layers"], ["model", "scan_layers"], True),
        (["--model.no-scan-layers"], ["model", "scan_layers"], False),
        (["--model.scan-layers", "False"], ["model", "scan_layers"], "False"),
        (["--model.pattern.0.mlp", "experts"], ["model", "pattern", 0, "mlp"], "experts"),
        (["--steps", "7", "--steps", "8"], ["steps"], "8"),
    ],
)
def test_an_override_sets_one_value(arguments, path, value):
    before = repr(DATA)
    result = applied(*arguments)
    assert result.unknown == []
    found = result.data
    for name in path:
        found = found[name]
    assert found == value
    assert repr(DATA) == before
    assert result.data["mesh"] == DATA["mesh"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--stepz", "7"],
        ["--steps"],
        ["--steps", "7", "8"],
        ["--mesh", "4"],
        ["--no-steps"],
        ["--model.no-scan-layers", "True"],
        ["--model.pattern.7.mlp", "experts"],
        ["--model.num-layers.0", "1"],
        ["steps", "7"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_what_names_no_field_or_does_not_fit_it_is_left(arguments):
    result = applied(*arguments)
    assert [text for override in result.unknown for text in override.arguments] == arguments
    assert result.data == DATA


def test_a_group_that_is_no_group_in_the_file_is_left():
    assert applied("--mesh.fsdp", "4", data={"mesh": 8}).data == {"mesh": 8}
    assert applied("--mesh.fsdp", "4", data={"mesh": None}).data == {"mesh": {"fsdp": "4"}}


@pytest.mark.parametrize(
    ("location", "origin"),
    [
        (("mesh", "fsdp"), "--mesh.fsdp 4"),
        (("mesh", "tensor"), "run.yaml"),
        (("mesh",), "run.yaml with --mesh.fsdp 4"),
        (("data", "text", 1), "--data.text a b"),
        ((), "run.yaml with --mesh.fsdp 4 --data.text a b"),
    ],
)
def test_the_origin_of_a_value(location, origin):
    result = applied("--mesh.fsdp", "4", "--data.text", "a", "b")
    assert result.origin(location, "run.yaml") == origin


def test_old_names_of_model_fields_are_corrected():
    given = parse_overrides(["--model.norm-eps", "1", "--norm-eps", "1", "--model.num-layers", "1"])
    assert [*correct_names(given, type(TINY))] == ["--model.norm-eps is now --model.norms.eps"]
    assert [*correct_names(given, type(CONFIGS["encoder-decoder"]))] == [
        "--model.norm-eps does not exist: "
        "set --model.encoder.norms.eps or --model.decoder.norms.eps",
        "--model.num-layers does not exist: "
        "set --model.encoder.num-layers or --model.decoder.num-layers",
    ]
