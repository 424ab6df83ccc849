"""Tests of `jaxllm parity`: its levels and its token files."""

import json
from pathlib import Path

import numpy as np
import pytest
import source_cases
from tiers import exhaustive

from jaxllm.cli import main


def test_parity_compares_only_the_requested_levels(byte_model, tmp_path, capsys):
    command = ["parity", str(byte_model), "--json", "--output", str(tmp_path / "out"), "--levels"]
    assert main([*command, "weights", "logits"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdicts"] == {"weights": True, "logits": True}
    assert [tap["path"] for tap in report["taps"]] == ["lm_head"]
    assert report["weights"]
    assert not any(report[level] for level in ("config", "gradients", "step", "curve", "generate"))
    assert json.loads((tmp_path / "out" / "parity.json").read_text()) == report


def test_quick_parity_leaves_out_the_slow_levels(byte_model, tmp_path, capsys):
    command = ["parity", str(byte_model), "--quick", "--json", "--output", str(tmp_path / "out")]
    assert main([*command, "--random", "--seed", "3"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdicts"] == {"weights": True, "config": True, "logits": True}
    assert (report["inputs"], report["seed"]) == ("random tokens", 3)


def test_options_that_exclude_each_other_are_rejected(byte_model, capsys):
    for options in (["--quick", "--levels", "logits"], ["--random", "--text", "a.txt"]):
        with pytest.raises(SystemExit) as end:
            main(["parity", str(byte_model), *options])
        assert end.value.code == 2
        assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["--levels", "logits", "layer"], "'layer' is not a level; did you mean 'layers'?"),
        (
            ["--levels", "logits", "llama"],
            "'llama' is not a level; choose from weights, config, logits, layers, gradients, step, "
            "curve, generate; the checkpoint comes before --levels",
        ),
        (["record", "llama", "--output", "o", "--levels", "x"], "argument --levels: 'x' is not a"),
        (["check", "--mesh", "fsdp=1", "pack", "llama"], "'pack' is not AXIS=SIZE; PACK and CHECK"),
        (["check", "pack", "llama", "--mesh", "=4"], "'=4' is not AXIS=SIZE"),
        (["check", "pack", "llama", "--mesh", "fsdp=0"], "'0' is not a whole number"),
    ],
)
def test_value_that_a_list_does_not_take_is_named(command, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(["parity", *command])
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (["fsdp=1", "fsdp=1"], "--mesh fsdp=1 fsdp=1: an axis is given more than once"),
        (["fsdp=1", "--mesh", "fsdp=8"], "--mesh fsdp=1 fsdp=8: an axis is given more than once"),
        (["fdsp=8"], "unknown mesh axis fdsp; did you mean 'fsdp'?"),
    ],
)
def test_wrong_mesh_axes_are_rejected(sizes, said, capsys):
    assert main(["parity", "check", "pack", "llama", "--mesh", *sizes]) == 2
    assert said in capsys.readouterr().err


ROWS = np.random.default_rng(0).integers(0, 80, (2, 24))


VECTORS = np.random.default_rng(1).standard_normal((2, 20, 5), np.float32)


LENGTHS = np.array([[24], [10]])


def save(file: Path, rows: object) -> str:
    """Writes rows, arrays by name or raw bytes in the format of the file name; returns the path."""
    if isinstance(rows, bytes):
        file.write_bytes(rows)
    elif file.suffix == ".npy":
        np.save(file, rows)
    elif file.suffix == ".npz":
        np.savez(file, **rows)
    else:
        file.write_text(json.dumps(rows))
    return str(file)


@pytest.fixture(scope="module")
def translator(tmp_path_factory) -> Path:
    """The folder of an encoder-decoder, which takes a mask of its source."""
    folder = tmp_path_factory.mktemp("translator")
    source_cases.write("nima-transformer", folder)
    return folder


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory) -> Path:
    """The folder of a model over continuous inputs."""
    folder = tmp_path_factory.mktemp("forecaster")
    source_cases.write("components-autoregressive", folder)
    return folder


@pytest.mark.cases(1, exhaustive=2)
@pytest.mark.parametrize(
    ("model", "name", "rows", "compared"),
    [
        ("byte_model", "rows.json", [[5, 6, 7, 8, 9], [1, 2]], (2, 5, 7)),
        *exhaustive(
            [
                ("forecaster", "rows.npy", VECTORS, (2, 20, 40)),
                ("byte_model", "rows.npy", ROWS, (2, 24, 48)),
                (
                    *("byte_model", "rows.npz"),
                    *({"target": ROWS, "target_mask": np.arange(24) < LENGTHS}, (2, 24, 34)),
                ),
                (
                    *("translator", "rows.npz"),
                    *({"source": ROWS + 4, "target": ROWS[:, 1:]}, (2, 23, 46)),
                ),
                (
                    *("translator", "rows.json"),
                    *({"source": [[9, 8], [7]], "target": [[5], [6]]}, (2, 1, 2)),
                ),
            ]
        ),
    ],
)
def test_parity_compares_on_the_tokens_of_a_file(
    model, name, rows, compared, request, tmp_path, capsys
):
    folder, tokens = request.getfixturevalue(model), save(tmp_path / name, rows)
    command = ["parity", str(folder), "--tokens", tokens, "--levels", "logits", "--json"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["batch_size"], report["length"], report["tokens"]) == compared
    assert report["seed"] is None
    assert report["verdicts"] == {"logits": True}


@pytest.mark.cases(6)
@pytest.mark.parametrize(
    ("model", "name", "rows", "said"),
    [
        ("byte_model", "none/rows.npy", None, "No such file"),
        ("byte_model", "rows.txt", b"1 2 3", "rows.txt is not a .npy, .npz or .json file"),
        ("byte_model", "rows.npy", b"1 2 3", "rows.npy: EOF: reading magic string"),
        ("byte_model", "rows.npy", np.array([{}]), "rows.npy: Object arrays cannot be loaded"),
        ("byte_model", "rows.npz", b"1 2 3", "rows.npz: File is not a zip file"),
        ("byte_model", "rows.npz", {"tokens": ROWS}, "rows.npz has tokens; it needs target"),
        ("byte_model", "rows.npz", {}, "rows.npz has nothing; it needs target"),
        ("byte_model", "rows.json", b"[[1, 2", "rows.json: Expecting"),
        (
            "byte_model",
            "rows.json",
            [[1.5]],
            "rows.json: target is not a list of lists of integers",
        ),
        ("byte_model", "rows.json", [[1 << 40]], "rows.json: Python integer 1099511627776 out of"),
        ("byte_model", "rows.json", [[]], "target is int32(1, 0); it must be integers (B, T)"),
        ("byte_model", "rows.npy", np.float32(3), "target is float32(); it must be integers"),
        ("byte_model", "rows.npy", 200 + ROWS, "the vocabulary has 0 to 255"),
        (
            *("byte_model", "rows.npz", {"source": ROWS, "target": ROWS}),
            "source is given, which a Decoder does not take",
        ),
        (
            *("byte_model", "rows.npz", {"target": ROWS, "target_mask": ROWS[:1]}),
            "target_mask has shape (1, 24), but target has (2, 24)",
        ),
        ("translator", "rows.npy", ROWS, "source is missing"),
        (
            *("translator", "rows.npz", {"source": ROWS[:1], "target": ROWS}),
            "source has 1 rows, but target has 2",
        ),
        (
            *("forecaster", "rows.npy", np.concatenate([VECTORS] * 9, 1)),
            "target has length 180; the model has 160 positions",
        ),
        (
            *("forecaster", "rows.npy", VECTORS.astype(float)),
            "target is float64(2, 20, 5); it must be float32 (B, T, 5)",
        ),
        (
            *("forecaster", "rows.npz", {"target": VECTORS, "labels": VECTORS[:, :1]}),
            "labels is float32(2, 1, 5); it must be float32(2, 20, 5)",
        ),
    ],
)
def test_invalid_token_file_is_a_one_line_error(model, name, rows, said, request, tmp_path, capsys):
    folder = request.getfixturevalue(model)
    tokens = str(tmp_path / name) if rows is None else save(tmp_path / name, rows)
    command = ["parity", str(folder), "--tokens", tokens, "--levels", "logits"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxllm: ")
    assert said in line
    assert not (tmp_path / "out").exists()
