"""The command `parity`: compares with PyTorch, with a recording of PyTorch, or across meshes."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from jaxllm.errors import UserError

from .choices import LevelNames
from .environment import comparison_progress, join_processes, log_to_stderr, print_rich, say
from .options import (
    AddCommand,
    add_dtype,
    add_json,
    add_output,
    add_random_tokens,
    add_reading,
    allowances,
    count,
    mesh_axis,
    mesh_sizes,
    parity_level,
    read_text,
)
from .parser import CommandParser
from .runs import read_run_config

if TYPE_CHECKING:
    from jaxllm.interop.parity import Report

QUICK = ("weights", "config", "logits")


def add_commands(add: AddCommand) -> None:
    """Adds `parity` and its subcommands to the command line."""
    parity = add(
        "parity",
        _parity,
        "Compare what PyTorch and jaxllm compute from a checkpoint.",
        "jaxllm parity exported/llama --levels logits layers",
    )
    _add_parity_options(parity)
    _add_record(parity)
    _add_check(parity)
    _add_mesh(parity)


def _add_parity_options(parity: CommandParser) -> None:
    parity.usage = "%(prog)s [options] CHECKPOINT\n       %(prog)s {record,check,mesh} ..."
    parity.add_argument(
        "path",
        metavar="CHECKPOINT",
        help="a Hugging Face folder, a GGUF file, or a folder of a source system",
    )
    parity.add_argument(
        "--against",
        metavar="CHECKPOINT",
        help="another checkpoint, of any format, to compare with instead of PyTorch: configs and "
        "weights, and with --levels logits the outputs",
    )
    chosen = parity.add_mutually_exclusive_group()
    levels = _add_levels(chosen, "what to compare: %(known)s (default: %(usual)s)")
    vars(levels).update(known=LevelNames(), usual=LevelNames(by_default=True))
    chosen.add_argument("--quick", action="store_true", help=f"compare only {', '.join(QUICK)}")
    given = parity.add_mutually_exclusive_group()
    _add_text(given)
    given.add_argument(
        "--tokens",
        metavar="FILE",
        help="tokens to compare on: .npy, .json, or .npz with source and target",
    )
    add_random_tokens(parity)
    add_output(parity)
    parity.add_argument(
        "--scratch",
        metavar="FOLDER",
        help="for a model larger than memory: an existing folder for weights and activations",
    )
    add_dtype(parity, "float32", "of weights and activations on both sides")
    add_json(parity, "the report")
    add_reading(parity)


def _add_record(parity: CommandParser) -> None:
    record = parity.add_subcommand(
        "record",
        _record,
        "Record what PyTorch computes, to check later without it.",
        "jaxllm parity record exported/llama --output packs/llama",
    )
    record.add_argument("path", metavar="CHECKPOINT", help="as for `jaxllm parity`")
    record.add_argument("--output", required=True, metavar="PACK", help="a new folder")
    _add_levels(record, "levels to record (default: all)")
    record.add_argument(
        "--positions",
        type=lambda text: None if text == "all" else count(text),
        default=24,
        metavar="N",
        help="positions of each row to record, or `all` (default: %(default)s)",
    )
    _add_text(record.add_mutually_exclusive_group())
    add_random_tokens(record)
    add_reading(record)


def _add_check(parity: CommandParser) -> None:
    check = parity.add_subcommand(
        "check",
        _check,
        "Compare a checkpoint with a recording, on any mesh.",
        "jaxllm parity check packs/llama runs/tiny --mesh fsdp=4 tensor=2",
    )
    check.add_argument("pack", metavar="PACK", help="a folder that `jaxllm parity record` wrote")
    check.add_argument("path", metavar="CHECKPOINT", help="the same model, in any format")
    check.add_argument(
        "--mesh",
        nargs="+",
        action="extend",
        type=mesh_axis,
        default=[],
        metavar="AXIS=SIZE",
        help="mesh to shard the model over (default: one device)",
    )
    _add_levels(check, "levels to compare (default: all recorded)")
    add_output(check)
    add_json(check, "the report")
    add_reading(check)


def _add_mesh(parity: CommandParser) -> None:
    mesh = parity.add_subcommand(
        "mesh",
        _mesh,
        "Compare a training step on every mesh layout with one device.",
        "jaxllm parity mesh configs/tiny.yaml --batch-size 16",
    )
    mesh.set_defaults(takes_overrides=True)
    mesh.add_argument("config", metavar="CONFIG", help="a YAML file, such as those in configs/")
    add_json(mesh, "the differences")
    mesh.epilog = f"Any field of the config is an option too.\n\n{mesh.epilog}"


def _add_levels(command: argparse._ActionsContainer, purpose: str) -> argparse.Action:
    return command.add_argument(
        "--levels", nargs="+", type=parity_level, metavar="LEVEL", help=purpose
    )


def _add_text(command: argparse._ActionsContainer) -> None:
    command.add_argument(
        "--text",
        metavar="FILE",
        help="a text to compare on (default: English text if there is a tokenizer, else random "
        "tokens)",
    )
    command.add_argument("--random", action="store_true", help="compare on random tokens")


def _against(arguments: argparse.Namespace) -> int:
    """Compares two checkpoints."""
    from jaxllm.interop.parity import Inputs, compare_checkpoints

    given = {
        "--text": arguments.text is not None,
        "--random": arguments.random,
        "--scratch": arguments.scratch is not None,
        "--dtype": arguments.dtype != "float32",
    }
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise UserError(f"{' and '.join(wrong)} cannot be combined with --against")
    with comparison_progress():
        report = compare_checkpoints(
            arguments.path,
            arguments.against,
            levels=QUICK if arguments.quick else arguments.levels,
            tokens=None if arguments.tokens is None else Inputs.read(Path(arguments.tokens)),
            num_tokens=arguments.num_tokens,
            seed=arguments.seed,
            rules=arguments.rules,
            **allowances(arguments),
        )
    return _finish(report, arguments)


def _parity(arguments: argparse.Namespace) -> int:
    if arguments.against is not None:
        return _against(arguments)
    from jaxllm.interop.parity import Inputs, check_checkpoint

    text = None if arguments.text is None else read_text(arguments.text)
    with comparison_progress():
        report = check_checkpoint(
            arguments.path,
            text=text,
            tokens=None if arguments.tokens is None else Inputs.read(Path(arguments.tokens)),
            random=arguments.random,
            num_tokens=arguments.num_tokens,
            seed=arguments.seed,
            levels=QUICK if arguments.quick else arguments.levels,
            rules=arguments.rules,
            scratch=arguments.scratch,
            dtype=arguments.dtype,
            **allowances(arguments),
        )
    return _finish(report, arguments)


def _finish(report: "Report", arguments: argparse.Namespace) -> int:
    """Writes and prints a report; returns the exit status, 0 if parity holds.

    In a multi-host job, all processes have the same report and process 0 writes it.
    """
    import jax

    from jaxllm.interop.saving.multihost import fail_together, is_first_process

    with fail_together(jax.process_count() > 1):
        if is_first_process():
            _show(report, arguments)
    return 0 if report.ok else 1


def _show(report: "Report", arguments: argparse.Namespace) -> None:
    from jaxllm.storage.paths import check_output
    from jaxllm.storage.whole_file import write_whole

    folder = check_output(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "parity.json", json.dumps(report.to_json(), indent=2) + "\n")
    report.write_html(folder / "parity.html")
    if arguments.json:
        print(json.dumps(report.to_json()))
    else:
        print_rich(report.table())
        say(f"{folder}: parity.json, parity.html")


def _record(arguments: argparse.Namespace) -> int:
    from jaxllm.interop.formats.byte_sizes import format_size
    from jaxllm.interop.parity.golden import record_checkpoint

    text = None if arguments.text is None else read_text(arguments.text)
    with comparison_progress():
        num_bytes = record_checkpoint(
            arguments.path,
            arguments.output,
            positions=arguments.positions,
            levels=arguments.levels,
            text=text,
            random=arguments.random,
            num_tokens=arguments.num_tokens,
            seed=arguments.seed,
            rules=arguments.rules,
            **allowances(arguments),
        )
    say(f"{arguments.output}: {format_size(num_bytes)}")
    return 0


def _check(arguments: argparse.Namespace) -> int:
    sizes = mesh_sizes(arguments.mesh)
    join_processes()
    from jaxllm.interop.parity.golden import check_pack
    from jaxllm.train import make_mesh

    mesh = make_mesh(**sizes) if sizes else None
    with comparison_progress():
        report = check_pack(
            arguments.pack,
            arguments.path,
            mesh=mesh,
            levels=arguments.levels,
            rules=arguments.rules,
            **allowances(arguments),
        )
    return _finish(report, arguments)


def _mesh(arguments: argparse.Namespace) -> int:
    from jaxllm.train.verify.equality import compare_variants

    log_to_stderr()
    config = read_run_config(arguments)
    model = None
    if config.init_from is not None:
        from jaxllm.interop import load_pretrained
        from jaxllm.interop.adapters.continuing import find_checkpoint

        start = find_checkpoint(config.init_from)
        model = load_pretrained(start, dtype="float32", strict=config.strict, allow=config.allow)
    equality = compare_variants(config, model)
    if arguments.json:
        print(json.dumps(equality.to_json()))
    else:
        print_rich(equality.table())
        say(equality.summary)
    return 0 if equality.first is None else 1
