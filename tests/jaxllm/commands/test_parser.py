"""The argument parser: subcommands, suggestions, help and versions."""

import argparse
import dataclasses
import shlex
from collections.abc import Iterator
from importlib import metadata

import pytest

from jaxllm.cli import main, make_parser
from jaxllm.commands.parser import CommandParser, versions
from jaxllm.train import TrainConfig


def commands(parser: CommandParser) -> Iterator[CommandParser]:
    """Yields every command below a parser, including subcommands."""
    of_argparse = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    below = [command for action in of_argparse for command in action.choices.values()]
    for command in [*below, *parser.subcommands.values()]:
        yield command
        yield from commands(command)


COMMANDS = {command.prog: command for command in commands(make_parser())}


def refused(*command: str, capsys) -> str:
    """Runs a command line that must fail with status 2; returns its error message."""
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_all_commands_are_listed():
    names = {
        "quickstart",
        "demo",
        "train",
        "plan",
        "diff",
        "doctor",
        "runs",
        "plot",
        "data",
        "tokenize",
        "generate",
        "chat",
        "serve",
        "eval",
        "new",
        "convert",
        "inspect",
        "verify",
    }
    names |= {"suggest", "parity", "parity record", "parity check", "parity mesh"}
    assert set(COMMANDS) == {f"jaxllm {name}" for name in names}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_explains_every_option_within_80_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = COMMANDS[name]
    assert command.description.endswith(".")
    assert all(action.help for action in command._actions), "an option without help"
    assert max(map(len, command.format_help().splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_example_of_each_command_parses(name):
    example = COMMANDS[name].format_help().rpartition("example:\n")[2].strip()
    assert example.startswith(f"{name} ")
    arguments, rest = make_parser().parse_known_args(shlex.split(example)[1:])
    assert arguments.parser.prog == name
    assert not rest or arguments.takes_overrides


def test_only_the_first_argument_can_name_a_subcommand():
    def parse(*arguments: str) -> argparse.Namespace:
        return make_parser().parse_args(["parity", *arguments])

    assert parse("mesh", "run.yaml").config == "run.yaml"
    assert parse("./mesh").path == "./mesh"
    assert parse("--levels", "logits", "--json", "mesh/").path == "mesh/"
    assert parse("--json", "mesh").path == "mesh"
    assert parse("mesh", "run.yaml").run is not parse("./mesh").run


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        (["covnert", "a", "b"], "did you mean 'convert'?"),
        (["parity", "chekc", "pack", "model"], "did you mean 'jaxllm parity check'?"),
        (["convert", "a", "b", "--to", "mta"], "did you mean 'meta'?"),
        (["convert", "a", "b", "--optimizer-format", "x"], "choose from state_dict, dcp"),
        (["generate", "a", "--prompt", "b", "--temprature=1"], "did you mean --temperature?"),
        (["parity", "check", "a", "b", "--msh"], "did you mean --mesh?"),
        (["inspect", "a", "b"], "unrecognized arguments: b"),
        (
            ["inspect", "--jsno"],
            "required: PATH; unrecognized arguments: --jsno; did you mean --json?",
        ),
        (["generate", "a", "--promt", "b"], "did you mean --prompt?"),
        (["generate", "a", "--prompt", "b", "--dtype", "float33"], "did you mean 'float32'?"),
        (["train", "c.yaml", "--resmue"], "unrecognized arguments: --resmue; did you mean --resum"),
        (["parity", "mesh", "c.yaml", "--jsno"], "did you mean --json?"),
        (["sing"], "choose from quickstart, demo"),
    ],
)
def test_unknown_name_gets_a_suggestion(command, meant, capsys):
    assert meant in refused(*command, capsys=capsys)


@pytest.mark.parametrize("name", ["jaxllm train", "jaxllm parity mesh"])
def test_no_field_of_a_run_is_taken_for_a_misspelled_option(name):
    """So that a command that takes them as overrides does not reject them."""
    for field in dataclasses.fields(TrainConfig):
        COMMANDS[name].check_unknown([f"--{field.name.replace('_', '-')}", "1"])


def test_existing_folder_is_not_taken_for_a_subcommand(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "meshes").mkdir()
    assert main(["parity", "meshes"]) == 1
    assert "meshes is not a checkpoint" in capsys.readouterr().err


def test_debug_may_stand_before_a_subcommand():
    arguments = make_parser().parse_args(["parity", "--debug", "mesh", "run.yaml"])
    assert (arguments.parser.prog, arguments.config) == ("jaxllm parity mesh", "run.yaml")
    assert arguments.debug


@pytest.mark.torch
def test_versions_lists_installed_packages(monkeypatch):
    lines = dict(line.split() for line in versions())
    assert list(lines) == ["jaxllm", "jax", "flax", "torch", "transformers", "python"]
    assert lines["jax"] == metadata.version("jax")

    def version(name: str) -> str:
        if name in ("torch", "transformers"):
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(metadata, "version", version)
    assert [line.split()[0] for line in versions()] == ["jaxllm", "jax", "flax", "python"]
