"""Every command as a new user would type it, wrong arguments included."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import source_cases
import yaml
from tiny import random_model

from jaxllm.cli import main
from jaxllm.config import to_dict
from jaxllm.interop import load_pretrained, save_pretrained

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory) -> Path:
    """A Hugging Face folder of a model over bytes."""
    folder = tmp_path_factory.mktemp("cli") / "llama"
    save_pretrained(random_model(vocab_size=256, head_dim=8), folder)
    return folder


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jaxllm", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from jaxllm.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'jax', 'torch', 'transformers', 'orbax', 'flax'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("[]\n")
    for command in ("quickstart", "train", "generate", "convert", "parity"):
        assert command in done.stdout


def test_generate_prints_the_prompt_and_its_continuation(byte_model, capsys):
    arguments = [
        "generate",
        str(byte_model),
        "--prompt",
        "def f(",
        "--max-new-tokens",
        "8",
        "--json",
    ]
    assert main(arguments) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["prompt"] == "def f("
    assert 1 <= len(row["tokens"]) <= 8
    assert main([*arguments[:-1], "--temperature", "0.9", "--top-k", "9", "--top-p", "0.9"]) == 0
    assert capsys.readouterr().out.startswith("def f(")


def test_convert_writes_what_loads_again(byte_model, tmp_path, capsys):
    assert (
        main(
            [
                "convert",
                str(byte_model),
                str(tmp_path / "meta"),
                "--to",
                "meta",
                "--model-parallel",
                "2",
            ]
        )
        == 0
    )
    assert main(["convert", str(tmp_path / "meta"), str(tmp_path / "hf")]) == 0
    assert (tmp_path / "hf" / "model.safetensors").stat().st_size == (
        byte_model / "model.safetensors"
    ).stat().st_size
    a, b = (load_pretrained(folder) for folder in (byte_model, tmp_path / "hf"))
    np.testing.assert_array_equal(
        a.layers["0:3"].mlp.up_proj.kernel[...], b.layers["0:3"].mlp.up_proj.kernel[...]
    )
    capsys.readouterr()
    assert main(["convert", str(byte_model), str(tmp_path / "hf")]) == 1
    assert "exists and is not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["generate", "nowhere", "--prompt", "x"], 1, "nowhere is not a folder"),
        (
            ["generate", "MODEL", "--prompt", "x", "--dtype", "int8"],
            2,
            "dtype='int8' is not one of float32",
        ),
        (["generate", "MODEL", "--prompt", "x", "--top-k", "4"], 2, "need a temperature above 0"),
        (
            ["generate", "MODEL", "--prompt", "x", "--repetition-penalty", "0"],
            2,
            "repetition_penalty=0.0 is not a number above 0",
        ),
        (["generate", "MODEL", "--prompt", ""], 2, "prompt 0 is empty"),
        (["convert", "MODEL", "OUT", "--model-parallel", "2"], 1, "is for format 'meta', not 'hf'"),
        (
            ["convert", "MODEL", "OUT", "--to", "meta", "--model-parallel", "3"],
            1,
            "3 model-parallel shards",
        ),
        (["train", "nowhere.yaml"], 2, "nowhere.yaml: No such file"),
        (["parity", "nowhere"], 1, "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_status(
    arguments, status, message, byte_model, tmp_path, capsys
):
    places = {"MODEL": str(byte_model), "OUT": str(tmp_path / "out")}
    assert main([places.get(argument, argument) for argument in arguments]) == status
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["sing"], ["generate"], ["generate", "x", "--max-new-tokens", "0"]]
)
def test_bad_usage_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: jaxllm" in capsys.readouterr().err


def test_a_misspelt_key_names_the_nearest(tmp_path, capsys):
    text = (ROOT / "configs" / "tiny.yaml").read_text()
    bad = tmp_path / "bad.yaml"
    bad.write_text(text.replace("learning_rate", "learning_rat").replace("seq_len", "seqlen"))
    assert main(["train", str(bad)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        f"jaxllm: {bad}: unknown field 'optimizer.learning_rat'; did you mean 'learning_rate'?"
        in lines
    )
    assert f"jaxllm: {bad}: unknown field 'seqlen'; did you mean 'seq_len'?" in lines


@pytest.mark.parametrize("damage", ["delete", "rename", "reshape"])
def test_a_damaged_tensor_is_named(damage, byte_model, tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(byte_model / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    tensor = tensors.pop(name)
    if damage == "rename":
        tensors[name.replace("k_proj", "key_proj")] = tensor
    if damage == "reshape":
        tensors[name] = np.concatenate([tensor, tensor])
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((byte_model / "config.json").read_text())
    assert main(["generate", str(tmp_path), "--prompt", "x"]) == 1
    err = capsys.readouterr().err
    assert name in err
    said = {
        "delete": "is missing",
        "rename": "did you mean",
        "reshape": "from the config, 32 in the file",
    }
    assert said[damage] in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--config", "run.yaml"], ["--config is for --with-optimizer"]),
        (["--optimizer", "a.pt"], ["--optimizer is for --with-optimizer"]),
        (["--with-optimizer"], ["into a run needs --config"]),
        (
            ["--with-optimizer", "--to", "meta", "--dtype", "bfloat16", "--step", "3"],
            [
                "--to meta: with its optimizer, what is PyTorch's becomes a run",
                "--dtype does not go with --with-optimizer into a run",
                "--step does not go with --with-optimizer into a run",
                "into a run needs --config",
            ],
        ),
    ],
)
def test_options_of_an_optimizer_that_do_not_fit(options, said, byte_model, tmp_path, capsys):
    assert main(["convert", str(byte_model), str(tmp_path / "out"), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(said)
    assert all(any(text in line for line in lines) for text in said)
    assert not list(tmp_path.iterdir())


def test_options_of_an_optimizer_that_do_not_fit_a_run(byte_model, tmp_path, capsys):
    native, out = str(tmp_path / "native"), str(tmp_path / "out")
    assert main(["convert", str(byte_model), native, "--to", "native"]) == 0
    capsys.readouterr()
    options = ["--with-optimizer", "--config", "run.yaml", "--model-parallel", "2"]
    options += ["--optimizer-format", "dcp", "--parameter-names", "names.txt"]
    assert main(["convert", native, out, *options]) == 2
    said = "jaxllm: --{} does not go with --with-optimizer and a run"
    assert capsys.readouterr().err.splitlines() == [
        said.format("config"),
        said.format("model-parallel"),
        "jaxllm: --parameter-names is for a state_dict: dcp goes by names, in no order",
    ]
    assert main(["convert", native, out, "--with-optimizer"]) == 2
    assert "was not trained here: it has no optimizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_train_override_resume_and_export(tmp_path, byte_model, capsys):
    """A run through the command line, from a checkpoint, that goes on and is exported."""
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    (tmp_path / "run.yaml").write_text(
        f"output: {tmp_path}/run\nsteps: 4\nbatch_size: 8\nseq_len: 32\ninit_from: {byte_model}\n"
        f"data:\n  text: [{tmp_path}/text.txt]\n  held_out: 0.2\nmesh: {{fsdp: 4, tensor: 2}}\n"
    )
    config = str(tmp_path / "run.yaml")
    assert main(["train", config, "--save-every", "2"]) == 0
    out = capsys.readouterr()
    assert "held-out loss" in out.out
    assert main(["train", config]) == 2
    assert "holds a run of 4 steps: --resume continues it" in capsys.readouterr().err
    assert main(["train", config, "--resume", "--optimizer.learning-rate", "1.0"]) == 2
    assert "optimizer.learning_rate: 0.0003 in the checkpoint, 1.0 now" in capsys.readouterr().err
    assert main(["train", config, "--resume"]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "hf")]) == 0
    assert (
        main(["generate", str(tmp_path / "run"), "--prompt", "the ", "--max-new-tokens", "4"]) == 0
    )
    assert capsys.readouterr().out.splitlines()[-1].startswith("the ")


def test_the_module_is_the_command(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: jaxllm")
    assert not list(tmp_path.iterdir())


def test_quickstart_touches_no_folder_of_yours(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    assert main(["quickstart", "--output", str(tmp_path)]) == 2
    assert "holds thesis.txt, which no quickstart made" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected fields, as in configs/tiny.yaml, found None"),
        ("- 1", "found [1]"),
        ("steps: 2\nsteps: 3", "'steps' occurs more than once"),
        ("optimizer: {b1: 0.9, b1: 0.8}", "'b1' occurs more than once"),
        ("a: [", "while parsing"),
    ],
)
def test_yaml_that_is_no_run_is_refused(text, message, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(text)
    assert main(["train", str(tmp_path / "run.yaml")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_resume_without_a_run_leaves_nothing_behind(tmp_path, capsys):
    arguments = [str(ROOT / "configs" / "tiny.yaml"), "--output", str(tmp_path / "run"), "--resume"]
    assert main(["train", *arguments, "--mesh.data", "8"]) == 2
    assert "holds no checkpoint to resume from" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_beams_replace_sampling(byte_model, capsys):
    command = ["generate", str(byte_model), "--prompt", "ab", "--max-new-tokens", "4"]
    assert main([*command, "--beams", "3"]) == 0
    assert capsys.readouterr().out.startswith("ab")
    assert main([*command, "--beams", "3", "--temperature", "1"]) == 2
    assert "--beams does not sample" in capsys.readouterr().err


def test_plan_says_what_a_run_takes(tmp_path, capsys):
    config = str(ROOT / "configs" / "tiny.yaml")
    assert main(["plan", config, "--plot", str(tmp_path / "schedule.png")]) == 0
    out = capsys.readouterr().out
    assert "parameters        " in out
    assert "compute-optimal" in out
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plan", config, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 60 * 16 * 128
    assert main(["plan", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_suggest_prints_rules_to_paste(byte_model, tmp_path, capsys):
    config = to_dict(load_pretrained(byte_model).config)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    weights = str(byte_model / "model.safetensors")
    assert main(["suggest", weights, "--config", str(tmp_path / "model.yaml")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("rules = [\n    Rule(")
    assert '"layers.{L}.attn.q_proj.kernel : D N H"' in out
    assert main(["suggest", weights]) == 1
    assert "so its config must be given" in capsys.readouterr().err
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert main(["suggest", weights, "--config", str(tmp_path / "list.yaml")]) == 2
    assert "is not a file of fields" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["inspect", "verify", "parity", "convert", "suggest"])
def test_rules_that_are_not_there_are_named(command, byte_model, tmp_path, capsys):
    rest = [str(tmp_path / "out")] if command == "convert" else []
    assert main([command, str(byte_model), *rest, "--rules", "nothing.py"]) == 1
    assert "rules='nothing.py' is not a file" in capsys.readouterr().err


def test_parity_judges_the_levels_it_is_given(byte_model, tmp_path, capsys):
    command = ["parity", str(byte_model), "--json", "--output", str(tmp_path / "out"), "--levels"]
    assert main([*command, "weights", "logits"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["verdicts"] == {"weights": True, "logits": True}
    assert [tap["path"] for tap in report["taps"]] == ["lm_head"]
    assert report["weights"]
    assert not any(report[level] for level in ("config", "gradients", "step", "curve", "generate"))
    assert json.loads((tmp_path / "out" / "parity.json").read_text()) == report


def test_levels_that_parity_does_not_have_are_refused(byte_model, tmp_path, capsys):
    command = ["parity", str(byte_model), "--output", str(tmp_path / "out"), "--levels"]
    assert main([*command, "logits", "layer", "weight"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "'logits', 'layer', 'weight'" in line
    assert "weights, config, logits, layers, gradients, step, curve, generate" in line
    assert not (tmp_path / "out").exists()


ROWS = np.random.default_rng(0).integers(0, 80, (2, 24))


def save(file: Path, rows: object) -> str:
    """Writes rows, or arrays by name, or what is in a file that is none of its kind; its path."""
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
    """A folder of an encoder-decoder, which takes a mask of its source."""
    folder = tmp_path_factory.mktemp("translator")
    source_cases.write("nima-transformer", folder)
    return folder


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory) -> Path:
    """A folder of a model over vectors."""
    folder = tmp_path_factory.mktemp("forecaster")
    source_cases.write("components-autoregressive", folder)
    return folder


VECTORS = np.random.default_rng(1).standard_normal((2, 20, 5), np.float32)
LENGTHS = np.array([[24], [10]])


@pytest.mark.parametrize(
    ("model", "name", "rows", "compared"),
    [
        ("byte_model", "rows.npy", ROWS, (2, 24, 48)),
        ("byte_model", "rows.json", [[5, 6, 7, 8, 9], [1, 2]], (2, 5, 7)),
        (
            *("byte_model", "rows.npz"),
            *({"target": ROWS, "target_mask": np.arange(24) < LENGTHS}, (2, 24, 34)),
        ),
        ("translator", "rows.npz", {"source": ROWS + 4, "target": ROWS[:, 1:]}, (2, 23, 46)),
        ("translator", "rows.json", {"source": [[9, 8], [7]], "target": [[5], [6]]}, (2, 1, 2)),
        ("forecaster", "rows.npy", VECTORS, (2, 20, 40)),
    ],
)
def test_parity_is_of_the_rows_of_a_file(model, name, rows, compared, request, tmp_path, capsys):
    folder, tokens = request.getfixturevalue(model), save(tmp_path / name, rows)
    command = ["parity", str(folder), "--tokens", tokens, "--levels", "logits", "--json"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["batch_size"], report["length"], report["tokens"]) == compared
    assert report["seed"] is None
    assert report["verdicts"] == {"logits": True}


@pytest.mark.parametrize(
    ("model", "name", "rows", "said"),
    [
        ("byte_model", "none/rows.npy", None, "No such file"),
        ("byte_model", "rows.txt", b"1 2 3", "rows.txt is no .npy, .npz or .json"),
        ("byte_model", "rows.npy", b"1 2 3", "rows.npy: EOF: reading magic string"),
        ("byte_model", "rows.npy", np.array([{}]), "rows.npy: Object arrays cannot be loaded"),
        ("byte_model", "rows.npz", b"1 2 3", "rows.npz: File is not a zip file"),
        ("byte_model", "rows.npz", {"tokens": ROWS}, "rows.npz has tokens, not target and of"),
        ("byte_model", "rows.npz", {}, "rows.npz has nothing, not target"),
        ("byte_model", "rows.json", b"[[1, 2", "rows.json: Expecting"),
        (
            "byte_model",
            "rows.json",
            [[1.5]],
            "rows.json: target is not a list of lists of integers",
        ),
        ("byte_model", "rows.json", [[1 << 40]], "rows.json: Python integer 1099511627776 out of"),
        ("byte_model", "rows.json", [[]], "target are int32(1, 0), not integers (B, T)"),
        ("byte_model", "rows.npy", np.float32(3), "target are float32(), not integers (B, T)"),
        ("byte_model", "rows.npy", 200 + ROWS, "are not in the vocabulary of 256"),
        (
            *("byte_model", "rows.npz", {"source": ROWS, "target": ROWS}),
            "source is not what the model is given",
        ),
        (
            *("byte_model", "rows.npz", {"target": ROWS, "target_mask": ROWS[:1]}),
            "target_mask is (1, 24), target (2, 24)",
        ),
        ("translator", "rows.npy", ROWS, "source is missing"),
        (
            *("translator", "rows.npz", {"source": ROWS[:1], "target": ROWS}),
            "1 rows of source, 2 of target",
        ),
        (
            *("forecaster", "rows.npy", np.concatenate([VECTORS] * 9, 1)),
            "target are 180 long, and positions end at 160",
        ),
        (
            *("forecaster", "rows.npy", VECTORS.astype(float)),
            "target are float64(2, 20, 5), not float32 (B, T, 5)",
        ),
        (
            *("forecaster", "rows.npz", {"target": VECTORS, "wanted": VECTORS[:, :1]}),
            "wanted are float32(2, 1, 5), not float32(2, 20, 5)",
        ),
    ],
)
def test_a_file_of_tokens_that_will_not_do_is_one_line(
    model, name, rows, said, request, tmp_path, capsys
):
    folder = request.getfixturevalue(model)
    tokens = str(tmp_path / name) if rows is None else save(tmp_path / name, rows)
    command = ["parity", str(folder), "--tokens", tokens, "--levels", "logits"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxllm: ")
    assert said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "text"), [("JAX_NUM_PROCESSES", "two"), ("JAX_PROCESS_ID", "-1")])
def test_processes_are_counted_in_whole_numbers(monkeypatch, capsys, name, text):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv(name, text)
    assert main(["parity", "check", "pack", "llama"]) == 2
    assert f"{name}='{text}'" in capsys.readouterr().err
