"""Run configs: complete error reports, suggestions, and lossless files."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import yaml
from flat_config import FLAT, MEANT
from hypothesis import given, settings
from hypothesis import strategies as st
from kinds import CONFIGS
from tiny import TINY

from jaxllm.config import MOVED, with_fields
from jaxllm.config import to_dict as model_to_dict
from jaxllm.train import ConfigError, TrainConfig, load_config
from jaxllm.train.config import (
    from_dict,
    from_stored,
    load_stored,
    read_yaml,
    save_config,
    to_dict,
)
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.data.tasks import TaskConfig
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.optimizers.config import BadStepsConfig, OptimizerConfig
from jaxllm.train.optimizers.schedule_config import MultiStepConfig
from jaxllm.train.restarts.changes import find_changes
from jaxllm.train.settings.logging import LoggingConfig

RUN = TrainConfig(
    output="runs/tiny",
    steps=20,
    batch_size=8,
    seq_len=32,
    model=TINY,
    data=DataConfig(text=("a.txt", "b/*.jsonl"), held_out=0.1),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=4),
    mesh=MeshConfig(fsdp=4, tensor=2),
)

SMALLEST = {
    "output": "runs/tiny",
    "steps": 20,
    "batch_size": 8,
    "seq_len": 32,
    "init_from": "somewhere",
}


def write(folder: Path, data: object) -> Path:
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def plain(config: TrainConfig) -> dict:
    """The config as it comes back from YAML or JSON."""
    return json.loads(json.dumps(to_dict(config)))


def problems(folder: Path, data: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, data))
    return str(caught.value).splitlines()


def said(folder: Path, data: object) -> list[str]:
    """The problems without the path of the file that begins each."""
    place = f"{folder / 'run.yaml'}: "
    lines = problems(folder, data)
    assert all(line.startswith(place) for line in lines)
    return [line.removeprefix(place) for line in lines]


def test_missing_optional_fields_get_their_defaults(tmp_path):
    config = load_config(write(tmp_path, SMALLEST))
    assert config == TrainConfig(**SMALLEST)
    assert (config.optimizer, config.mesh, config.data) == (
        OptimizerConfig(),
        MeshConfig(),
        DataConfig(),
    )


def test_a_saved_config_loads_as_an_equal_config(tmp_path):
    """Lists in YAML become tuples in the config."""
    save_config(RUN, tmp_path / "config.yaml")
    read = load_config(tmp_path / "config.yaml")
    assert read == RUN
    assert read.data.text == ("a.txt", "b/*.jsonl")
    assert hash(read) == hash(RUN)
    assert "!!python" not in (tmp_path / "config.yaml").read_text()


@given(
    st.builds(
        dataclasses.replace,
        st.just(RUN),
        accumulate=st.sampled_from([1, 2, 4]),
        dtype=st.sampled_from([None, "float32", "bfloat16"]),
        remat=st.sampled_from([None, "none", "dots", "full"]),
        logging=st.builds(LoggingConfig, wandb=st.none() | st.text(min_size=1)),
        seed=st.integers(0, 2**32 - 1),
        data=st.builds(
            DataConfig,
            text=st.none() | st.lists(st.text(min_size=1), min_size=1).map(tuple),
            eos=st.none() | st.text(),
            held_out=st.floats(0, 0.99),
        ),
        optimizer=st.builds(
            OptimizerConfig, learning_rate=st.floats(1e-8, 1), b2=st.floats(0, 0.999)
        ),
    )
)
@settings(max_examples=50, deadline=None)
def test_config_round_trips_through_json_and_yaml(config):
    assert from_dict(plain(config), "here") == config
    assert from_dict(yaml.safe_load(yaml.safe_dump(plain(config))), "here") == config
    assert find_changes(plain(config), config, 0) == []


@pytest.mark.parametrize(
    ("path", "given", "meant"),
    [
        ((), "stepz", "steps"),
        ((), "batchsize", "batch_size"),
        (("optimizer",), "learning_rat", "learning_rate"),
        (("optimizer",), "weight_deacy", "weight_decay"),
        (("mesh",), "tensors", "tensor"),
        (("data",), "heldout", "held_out"),
        (("model",), "num_layer", "num_layers"),
    ],
)
def test_an_unknown_field_is_reported_with_the_nearest_known_one(path, given, meant, tmp_path):
    data = plain(RUN)
    inner = data
    for key in path:
        inner = inner[key]
    inner[given] = 1
    (line,) = problems(tmp_path, data)
    assert ".".join([*path, given]) in line
    assert f"did you mean {meant!r}?" in line
    assert "run.yaml" in line


# Old names of model fields.


@pytest.mark.parametrize("name", MOVED)
def test_an_old_field_name_is_reported_with_its_new_name(name, tmp_path):
    data = plain(RUN)
    data["model"][name] = FLAT[name] if name in ("positions", "init") else 1
    assert problems(tmp_path, data) == [
        f"{tmp_path / 'run.yaml'}: model.{name} is now model.{MOVED[name]}"
    ]


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_an_old_field_name_in_an_encoder_or_decoder_is_reported(stack, tmp_path):
    data = plain(dataclasses.replace(RUN, model=CONFIGS["encoder-decoder"]))
    data["model"][stack] |= {"norm_eps": 1e-6, "positions": "learned"}
    lines = problems(tmp_path, data)
    prefix = f"{tmp_path / 'run.yaml'}: model.{stack}."
    assert sorted(lines) == [
        f"{prefix}norm_eps is now model.{stack}.norms.eps",
        f"{prefix}positions is now model.{stack}.positions.kind",
    ]


@pytest.mark.parametrize(
    ("kind", "given", "line"),
    [
        ("decoder", {"norms": {"norm_eps": 1}}, "model.norms.norm_eps is now model.norms.eps"),
        ("decoder", {"rope": {"rope_theta": 1}}, "model.rope.rope_theta is now model.rope.theta"),
        (
            "decoder",
            {"rope_scaling.factor": 2},
            "model.rope_scaling.factor is now model.rope.scaling.factor",
        ),
        (
            "decoder",
            {"pattern": [{"sees": "all"}]},
            "model.pattern.0.sees is now model.pattern.0.attention",
        ),
        (
            "decoder",
            {"norms.eps": 2},
            "unknown field 'model.norms.eps'; write it nested, as in {norms: {eps: ...}}",
        ),
        (
            "encoder-decoder",
            {"norm_eps": 1},
            "model.norm_eps does not exist: set model.encoder.norms.eps or model.decoder.norms.eps",
        ),
        (
            "encoder-decoder",
            {"encoder": {"tie_embeddings": True}},
            "model.encoder.tie_embeddings does not exist: set model.decoder.head.tied",
        ),
        (
            "pooled",
            {"tie_embeddings": True},
            "unknown field 'model.tie_embeddings'; known fields are embed_dim, ",
        ),
    ],
)
def test_a_correction_names_a_field_of_the_selected_class(kind, given, line, tmp_path):
    """Whatever the message says to write can be written."""
    data = plain(dataclasses.replace(RUN, model={"decoder": TINY, **CONFIGS}[kind]))
    for name, value in given.items():
        data["model"][name] = {**data["model"][name], **value} if isinstance(value, dict) else value
    assert [found[: len(line)] for found in said(tmp_path, data)] == [line]


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["--model.norm-eps", "1e-6"], ["--model.norm-eps is now --model.norms.eps"]),
        (["--model.norm_eps=1e-6"], ["--model.norm_eps is now --model.norms.eps"]),
        (
            ["--model.init", "xavier", "--model.gated-mlp", "False"],
            ["--model.init is now --model.init.kind", "--model.gated-mlp is now --model.mlp.gated"],
        ),
        (
            ["--model.rope-scaling.factor", "2"],
            ["--model.rope-scaling.factor is now --model.rope.scaling.factor"],
        ),
        (
            ["--model.attn-temperature.scale=2", "--model.relative.count", "4"],
            [
                "--model.attn-temperature.scale is now --model.attention.temperature.scale",
                "--model.relative.count is now --model.positions.relative.count",
            ],
        ),
        (["--model.no-tie-embeddings"], ["--model.no-tie-embeddings is now --model.head.no-tied"]),
        (
            ["--model.encoder.norm-eps", "1"],
            ["--model.encoder.norm-eps does not exist: set --model.norms.eps"],
        ),
    ],
)
def test_an_old_field_name_in_an_override_is_reported(overrides, lines, tmp_path):
    save_config(RUN, tmp_path / "run.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml", overrides)
    assert str(caught.value).splitlines() == lines


def test_an_override_for_both_stacks_is_reported_with_the_option_of_each(tmp_path):
    save_config(dataclasses.replace(RUN, model=CONFIGS["encoder-decoder"]), tmp_path / "run.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml", ["--model.norm-eps", "1"])
    assert str(caught.value) == (
        "--model.norm-eps does not exist: "
        "set --model.encoder.norms.eps or --model.decoder.norms.eps"
    )


def test_the_value_of_an_override_is_no_option(tmp_path):
    save_config(RUN, tmp_path / "run.yaml")
    config = load_config(tmp_path / "run.yaml", ["--output", "model.norm"])
    assert config == dataclasses.replace(RUN, output="model.norm")


def test_a_negated_option_of_a_current_name_is_no_old_one(tmp_path):
    save_config(RUN, tmp_path / "run.yaml")
    config = load_config(tmp_path / "run.yaml", ["--model.head.no-tied"])
    assert not config.model.head.tied


def test_grouped_fields_can_be_overridden(tmp_path):
    save_config(RUN, tmp_path / "run.yaml")
    overrides = ["--model.norms.eps", "1e-3", "--model.positions.kind", "learned"]
    overrides += ["--model.init.kind", "xavier"]
    changed = {"norms.eps": 1e-3, "positions.kind": "learned", "init.kind": "xavier"}
    config = load_config(tmp_path / "run.yaml", overrides)
    assert config == dataclasses.replace(RUN, model=with_fields(TINY, changed))


def test_a_run_stored_with_old_field_names_is_upgraded(tmp_path):
    """Old names are read, compared and saved in stored runs, but rejected in a user's config."""
    run = dataclasses.replace(RUN, model=MEANT)
    old = plain(run) | {"model": FLAT}
    file = write(tmp_path, old)
    assert load_stored(file) == from_stored(old, "here") == run
    assert find_changes(old, run, 0) == []
    other = dataclasses.replace(run, model=with_fields(MEANT, {"norms.eps": 1e-5}))
    assert find_changes(old, other, 0) == ["model.norms.eps: 1e-06 in the checkpoint, 1e-05 now"]
    with pytest.raises(ConfigError, match=r"model\.norm_eps is now model\.norms\.eps"):
        load_config(file)
    before = file.read_text()
    save_config(run, file)
    assert file.read_text() == before


def test_the_copy_in_a_runs_own_folder_may_use_old_field_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    old = plain(RUN) | {"model": FLAT}
    (folder / "config.yaml").write_text(yaml.safe_dump(old))
    run = dataclasses.replace(RUN, model=MEANT)
    for path in (folder / "config.yaml", "runs/tiny/config.yaml"):
        assert load_config(path) == run
        assert load_config(path, ["--keep", "3"]) == dataclasses.replace(run, keep=3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"norms": "x", "norm_eps": 1}, "norms is given both as a whole and by its fields"),
        ({"norms": {"eps": 1}, "norm_eps": 1}, "norms.eps is given twice (norm_eps, norms.eps)"),
        ({5: 1}, "5 is not a field name"),
    ],
)
def test_a_stored_model_that_cannot_be_upgraded_is_reported(given, message, tmp_path):
    data = plain(RUN)
    del data["model"]["norms"]
    file = write(tmp_path, data | {"model": data["model"] | given})
    with pytest.raises(ConfigError) as caught:
        load_stored(file)
    assert str(caught.value).startswith(f"{file}: model: {message}")


@pytest.mark.parametrize("path", [(), ("optimizer",), ("model",), ("model", "norms")])
@pytest.mark.parametrize("key", [5, True])
def test_a_key_that_is_no_string_is_reported(path, key, tmp_path):
    data = inner = plain(RUN)
    for name in path:
        inner = inner[name]
    inner[key] = 1
    name = ".".join([*path, str(key)])
    assert said(tmp_path, data) == [f"{name} is not a field name: it must be a string"]


def test_an_unknown_field_without_a_near_match_lists_the_known_fields(tmp_path):
    (line,) = problems(tmp_path, plain(RUN) | {"mesh": {"zzz": 1}})
    assert "mesh.zzz" in line
    assert all(axis in line for axis in ("data", "fsdp", "tensor"))


@pytest.mark.parametrize(
    ("field", "given", "message"),
    [
        ("data", {"task": "sum", "sead": 1}, "unknown field 'data.sead'; did you mean 'seed'?"),
        ("data", {"pairs": ["a"], "sourcekey": "b"}, "'data.sourcekey'; did you mean 'source_key'"),
        ("data", {"vectors": "a.npz", "heldout": 1}, "'data.heldout'; did you mean 'held_out'?"),
        ("data", {"task": "guess"}, "data.task='guess'"),
        ("data", {"pairs": ["a"], "held_out": 2.0}, "held_out=2.0 is not in"),
        ("data", 3, "data=3"),
        ("model", 3, "model=3"),
        (
            "model",
            {"pattern": [{"attentoin": "full"}]},
            "'model.pattern.0.attentoin'; did you mean 'attention'?",
        ),
    ],
)
def test_errors_concern_only_the_class_that_the_fields_select(field, given, message, tmp_path):
    """No error mentions the other classes of the union."""
    data = plain(RUN)
    data[field] = {**data["model"], **given} if field == "model" and given != 3 else given
    (line,) = problems(tmp_path, data)
    assert message in line


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_run_of_every_model_kind_is_saved_and_loaded(kind, tmp_path):
    config = dataclasses.replace(RUN, model=CONFIGS[kind], data=TaskConfig(task="copy"))
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert from_dict(plain(config), "here") == config


@pytest.mark.parametrize(
    ("kind", "path"), [("pooled", "model"), ("vectors given vectors", "model.decoder")]
)
def test_fields_of_union_types_can_be_overridden(kind, path, tmp_path, capsys):
    run = dataclasses.replace(RUN, model=CONFIGS[kind], data=TaskConfig(task="sum"))
    save_config(run, tmp_path / "run.yaml")
    overrides = [f"--{path}.num-layers", "7", "--data.seed", "3", "--data.task", "copy"]
    config = load_config(tmp_path / "run.yaml", overrides)
    inner = config.model if path == "model" else config.model.decoder
    assert (inner.num_layers, config.data) == (7, TaskConfig(task="copy", seed=3))
    with pytest.raises(SystemExit):
        load_config(tmp_path / "run.yaml", [f"--{path}.num-layer", "7"])
    output = capsys.readouterr()
    assert f"--{path}.num-layers" in output.err + output.out


def test_an_unknown_field_of_rope_scaling_is_reported(tmp_path):
    data = plain(RUN)
    data["model"]["rope"]["scaling"] = {"kind": "linear", "factor": 2.0, "facter": 2.0}
    (line,) = problems(tmp_path, data)
    assert "model.rope.scaling.facter" in line
    assert "'factor'" in line


@pytest.mark.parametrize(
    ("changed", "parts"),
    [
        ({"steps": "many"}, ["steps='many'", "integer"]),
        ({"steps": 1.5}, ["steps=1.5"]),
        ({"logging": {"tensorboard": "perhaps"}}, ["logging.tensorboard='perhaps'"]),
        ({"dtype": "fp32"}, ["dtype='fp32'", "float32"]),
        ({"optimizer": {"b1": "high"}}, ["optimizer.b1='high'"]),
        ({"mesh": 8}, ["mesh"]),
        ({"data": {"text": "a.txt"}}, ["data.text='a.txt'"]),
        ({"steps": 0}, ["steps=0"]),
        ({"seed": -1}, ["seed=-1 is not in [0, 2**32)"]),
        ({"seed": 2**32}, ["seed=4294967296 exceeds the limit of 4,294,967,295"]),
        ({"seed": 2**70}, ["seed=1180591620717411303424 exceeds the limit"]),
        ({"data": {"seed": -1}}, ["data.seed=-1 is not in [0, 2**32)"]),
        ({"steps": 10**400}, ["steps=1000", "exceeds the limit of 2,147,483,647"]),
        ({"batch_size": 10**400}, ["batch_size=1000", "exceeds the limit"]),
        ({"optimizer": {"learning_rate": float("nan")}}, ["optimizer.learning_rate=nan", "finite"]),
        ({"mesh": {"fsdp": 10**400}}, ["mesh.fsdp=1000", "exceeds the limit"]),
        ({"accumulate": 3}, ["batch_size=8", "accumulate=3"]),
        ({"optimizer": {"warmup_steps": 20}}, ["warmup_steps=20", "steps=20"]),
        ({"speed": {"profile": "10:21"}}, ["speed.profile='10:21'", "steps=20"]),
        ({"optimizer": {"clip_norm": 0.0}}, ["clip_norm=0.0"]),
        ({"mesh": {"fsdp": 0}}, ["fsdp=0"]),
        ({"data": {"held_out": 1.0}}, ["held_out=1.0"]),
        ({"model": model_to_dict(TINY)}, ["model", "init_from"]),
        ({"init_from": None}, ["model", "init_from"]),
        (
            {"init_from": None, "model": model_to_dict(TINY) | {"head_dim": 7}},
            ["head_dim=7"],
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_invalid_value_is_reported(changed, parts, tmp_path):
    lines = problems(tmp_path, SMALLEST | changed)
    assert any(all(part in line for part in parts) for line in lines), lines
    assert all(line.startswith(str(tmp_path / "run.yaml")) for line in lines)


@pytest.mark.parametrize("name", ["output", "steps", "batch_size", "seq_len"])
def test_a_missing_required_field_is_reported(name, tmp_path):
    (line,) = problems(tmp_path, {k: v for k, v in SMALLEST.items() if k != name})
    assert f"{name} is missing" in line


def test_one_error_lists_every_problem(tmp_path):
    data = plain(RUN) | {"stepz": 1, "seq_len": "long"}
    del data["output"]
    data["optimizer"]["b3"] = 0.9
    data["model"]["head_dim"] = "wide"
    data["mesh"]["fsdp"] = -2
    lines = problems(tmp_path, data)
    expected = [
        "stepz",
        "seq_len='long'",
        "output is missing",
        "optimizer.b3",
        "model.head_dim='wide'",
    ]
    for part in [*expected, "fsdp=-2"]:
        assert sum(part in line for line in lines) == 1, (part, lines)
    assert len(lines) == 6


def test_files_that_are_not_configs_are_reported(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: No such file"):
        load_config(tmp_path / "nothing.yaml")
    (tmp_path / "bad.yaml").write_text("steps: [1\nseq_len: 2")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"empty\.yaml"):
        load_config(tmp_path / "empty.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match=r"list\.yaml"):
        load_config(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: !!int x", "invalid literal"),
        ("a: !!int ''", "invalid YAML"),
        ("a: !!float x", "could not convert"),
        ("a: !!bool x", "invalid YAML"),
        ("a: !!timestamp x", "invalid YAML"),
        ("a: " + "1" * 5000, "characters without quotes"),
        ("a: &x {b: *x}", "*x contains itself"),
        ("a: &x [*x]", "*x contains itself"),
        ("[" * 3000, "nested more than 100 levels deep"),
        ("a: 1\na: 2", "'a' occurs more than once"),
        ("a: [{b: 1, b: 2}]", "'b' occurs more than once"),
        ("? &x [1]\n: 1\n? *x\n: 2", "unhashable"),
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_cannot_be_read_is_reported(text, message, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml: ") as caught:
        read_yaml(tmp_path / "run.yaml")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_aliases_that_multiply_are_refused(tmp_path):
    levels = ["a0: &a0 {x: 1}"]
    keys = "bcdefghij"
    for level in range(20):
        copies = ", ".join(f"{key}: *a{level}" for key in keys)
        levels.append(f"a{level + 1}: &a{level + 1} {{{copies}}}")
    (tmp_path / "run.yaml").write_text("\n".join([*levels, "steps: [*a20]"]))
    with pytest.raises(ConfigError, match=r"run\.yaml: more than 100,000 values"):
        load_config(tmp_path / "run.yaml")


def test_a_pipe_in_place_of_a_config_is_refused(tmp_path):
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match=r"run\.yaml: this is a pipe"):
        load_config(tmp_path / "run.yaml")


def test_numbers_in_yaml_notation_are_read(tmp_path):
    """YAML 1.1 reads 1e-4 as a string."""
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(SMALLEST) + "optimizer: {learning_rate: 1e-4, b2: .95}\n")
    config = load_config(file)
    assert (config.optimizer.learning_rate, config.optimizer.b2) == (1e-4, 0.95)


def test_overrides_replace_single_fields(tmp_path):
    save_config(RUN, tmp_path / "run.yaml")
    overrides = ["--steps", "7", "--optimizer.learning-rate", "0.5", "--mesh.fsdp", "8"]
    overrides += ["--mesh.tensor", "1", "--dtype", "bfloat16", "--model.num-layers", "2"]
    config = load_config(tmp_path / "run.yaml", overrides)
    assert config == dataclasses.replace(
        RUN,
        dtype="bfloat16",
        steps=7,
        optimizer=dataclasses.replace(RUN.optimizer, learning_rate=0.5),
        mesh=MeshConfig(fsdp=8),
        model=dataclasses.replace(TINY, num_layers=2),
    )


def test_an_unknown_override_exits_with_a_suggestion(tmp_path, capsys):
    save_config(RUN, tmp_path / "run.yaml")
    with pytest.raises(SystemExit) as caught:
        load_config(tmp_path / "run.yaml", ["--optimizer.learning-rat", "1"])
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert "--optimizer.learning-rate" in output.err + output.out


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["--batch-size", "9", "--accumulate", "2"], "batch_size=9 is not a multiple"),
        (["--steps", "many"], "steps='many': input should be a valid integer"),
        (["--dtype=fp32"], "dtype='fp32': input should be 'float32', "),
        (["--mesh.fsdp", "0"], "mesh.fsdp=0 is less than 1"),
    ],
)
def test_an_invalid_override_is_reported_with_its_option(overrides, line, tmp_path):
    save_config(RUN, tmp_path / "run.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml", overrides)
    (found,) = str(caught.value).splitlines()
    assert line in found
    assert " ".join(overrides).replace("=", " ") in found


@pytest.mark.parametrize(("given", "meant"), [("steps=7", "--steps 7"), ("b.yaml", "--steps 100")])
def test_an_override_without_dashes_is_answered_with_an_option(given, meant, tmp_path):
    save_config(RUN, tmp_path / "run.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml", [given])
    assert str(caught.value) == f"{given!r} is not an option; write a field as in {meant}"


def test_the_model_of_a_checkpoint_cannot_be_overridden(tmp_path):
    file = write(tmp_path, SMALLEST)
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["--model.num-layers", "2", "--keep", "1"])
    assert str(caught.value) == (
        "--model.num-layers 2: the model is that of init_from=somewhere, so it cannot be changed"
    )


def test_an_override_mends_a_file_with_an_invalid_and_a_missing_value(tmp_path):
    """The file and the overrides are validated together, once."""
    broken = plain(RUN) | {"seq_len": "long", "mesh": {"fsdp": 0}}
    del broken["steps"]
    file = write(tmp_path, broken)
    config = load_config(file, ["--steps", "20", "--seq-len", "32", "--mesh.fsdp", "8"])
    assert config == dataclasses.replace(RUN, mesh=MeshConfig(fsdp=8))
    with pytest.raises(ConfigError) as caught:
        load_config(file, ["--seq-len", "short", "--mesh.tensor", "2"])
    assert sorted(str(caught.value).splitlines()) == [
        "--seq-len short: seq_len='short': input should be a valid integer, unable to parse "
        "string as an integer",
        f"{file} with --mesh.tensor 2: mesh: mesh.fsdp=0 is less than 1",
        f"{file}: steps is missing",
    ]


OLD_KEYS = {
    "log_every": (3, "logging.every"),
    "tensorboard": (True, "logging.tensorboard"),
    "wandb": ("project", "logging.wandb"),
    "optimizer.on_bad_step": ("skip", "optimizer.bad_steps.action"),
    "optimizer.spike": (3.0, "optimizer.bad_steps.spike"),
    "optimizer.milestones": ([0.5, 0.7], "optimizer.multi_step.milestones"),
    "optimizer.factors": ([0.3, 0.2], "optimizer.multi_step.factors"),
}


@pytest.mark.parametrize("old", OLD_KEYS)
def test_an_old_key_names_the_new_one(tmp_path, old):
    value, new = OLD_KEYS[old]
    group, _, field = old.rpartition(".")
    given = {**SMALLEST, **({group: {field: value}} if group else {field: value})}
    assert said(tmp_path, given) == [f"{old} is now {new}"]
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, SMALLEST), [f"--{old.replace('_', '-')}", str(value)])
    assert str(caught.value) == f"--{old.replace('_', '-')} is now --{new.replace('_', '-')}"


def test_stored_runs_with_old_keys_are_read():
    optimizer = {name.partition(".")[2]: OLD_KEYS[name][0] for name in OLD_KEYS if "." in name}
    run = {name: value for name, (value, _) in OLD_KEYS.items() if "." not in name}
    found = from_stored({**SMALLEST, **run, "optimizer": optimizer}, "a run")
    assert found.logging == LoggingConfig(every=3, tensorboard=True, wandb="project")
    assert found.optimizer.bad_steps == BadStepsConfig(action="skip", spike=3.0)
    assert found.optimizer.multi_step == MultiStepConfig(milestones=(0.5, 0.7), factors=(0.3, 0.2))


def test_the_old_key_of_the_loss_names_the_new_one_and_stored_runs_are_read():
    given = {"output": "x", "steps": 1, "batch_size": 1, "seq_len": 4, "init_from": "y"}
    with pytest.raises(ConfigError, match=r"loss_chunk is now loss\.chunk_tokens, which counts"):
        from_dict({**given, "loss_chunk": 512}, "a.yaml")
    assert from_stored({**given, "loss_chunk": 7}, "a run").loss.chunk_tokens == 2048
    with pytest.raises(ConfigError, match=r"loss\.z_loss=-1\.0 is negative"):
        from_dict({**given, "loss": {"z_loss": -1.0}}, "a.yaml")
