"""Commands that read checkpoints: `inspect`, `verify` and `suggest`."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllm.errors import UserError

from .environment import print_rich, say
from .options import (
    CHECKPOINT,
    MAX_RAM,
    AddCommand,
    add_json,
    add_max_ram,
    add_reading,
    add_step,
    allowances,
)

if TYPE_CHECKING:
    from jaxllm.config import Config


def add_commands(add: AddCommand) -> None:
    """Adds `inspect`, `verify` and `suggest` to the command line."""
    _add_inspect(add)
    _add_verify(add)
    _add_suggest(add)


def _add_inspect(add: AddCommand) -> None:
    inspect = add(
        "inspect",
        _inspect,
        "List the tensors of a folder or file and check whether a folder would load.",
        "jaxllm inspect exported/llama",
    )
    inspect.add_argument(
        "path", metavar="PATH", help="any folder or file of tensors, or hf://ORG/NAME"
    )
    add_json(inspect, "the listing")
    add_reading(inspect)


def _add_verify(add: AddCommand) -> None:
    verify = add(
        "verify",
        _verify,
        "Prove that import and export keep every bit.",
        "jaxllm verify exported/llama --manifest llama.json",
    )
    verify.add_argument("path", metavar="CHECKPOINT", help=CHECKPOINT)
    add_step(verify)
    verify.add_argument(
        "--manifest",
        metavar="FILE",
        help="sha256 of each tensor: compared if the file exists, otherwise written",
    )
    add_max_ram(verify)
    add_json(verify, "the findings")
    add_reading(verify)


def _add_suggest(add: AddCommand) -> None:
    suggest = add(
        "suggest",
        _suggest,
        "Propose rules for a PyTorch model that has none.",
        "jaxllm suggest model.safetensors --config model.yaml",
    )
    suggest.add_argument("path", metavar="PATH", help="a file or folder of tensors")
    suggest.add_argument(
        "--config", metavar="YAML", help="the fields of the model's config, as jaxllm names them"
    )
    add_reading(suggest)


def _verify(arguments: argparse.Namespace) -> int:
    from jaxllm.interop import verify

    found = verify(
        arguments.path,
        step=arguments.step,
        manifest=arguments.manifest,
        max_ram=arguments.max_ram or MAX_RAM,
        rules=arguments.rules,
        **allowances(arguments),
    )
    if arguments.json:
        print(json.dumps(found.to_json()))
    else:
        for problem in found.problems:
            say(problem)
        say(found.summary)
    return 0 if found.ok else 1


def _inspect(arguments: argparse.Namespace) -> int:
    from jaxllm.interop import inspect

    inspection = inspect(arguments.path, rules=arguments.rules, **allowances(arguments))
    if arguments.json:
        print(json.dumps(inspection.to_json()))
    else:
        from jaxllm.interop.inspection.inspect_table import render

        print_rich(render(inspection))
    return 0 if inspection.ok else 1


def _suggest(arguments: argparse.Namespace) -> int:
    from jaxllm.interop import suggest

    config = None if arguments.config is None else _read_config(Path(arguments.config))
    found = suggest(arguments.path, config, rules=arguments.rules, **allowances(arguments))
    say(found)
    return 0


def _read_config(path: Path) -> "Config":
    """Reads a model config from a YAML file. Raises UserError if it is not one."""
    from jaxllm.config import from_dict
    from jaxllm.train.config import read_yaml

    try:
        return from_dict(read_yaml(path))
    except UserError:
        raise
    except ValueError as error:
        raise UserError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None
