"""Commands that compare: with PyTorch, with a recording, with one device, with another run."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from .level_names import LevelNames
from .log import log_to_stderr
from .options import Add, add_rules, count
from .processes import join_processes

if TYPE_CHECKING:
    from jaxllm.interop.parity import Report


def add_commands(add: Add) -> None:
    """`parity` with its three kinds, and `diff`."""
    purpose = "Compare what PyTorch computes from a checkpoint with what we do."
    _add_parity_options(add("parity", _parity, purpose))

    purpose = "Write down what PyTorch computes, to be checked where it is not installed."
    _add_record_options(add("parity record", _parity_record, purpose))
    purpose = "Compare a checkpoint with what was recorded, on any mesh, without PyTorch."
    _add_check_options(add("parity check", _parity_check, purpose))
    _add_mesh_options(add("parity mesh", _parity_mesh, "Compare every layout with one device."))
    _add_diff_options(add("diff", _diff, "Say at which step two runs part, and in what."))


def _add_parity_options(parity: argparse.ArgumentParser) -> None:
    add_rules(parity)
    parity.add_argument("path", help="a checkpoint of Hugging Face or of a source system")
    levels = parity.add_argument("--levels", nargs="+", metavar="LEVEL")
    levels.help = "of %(known)s; default: %(usual)s"
    vars(levels).update(known=LevelNames(), usual=LevelNames(by_default=True))
    given = parity.add_mutually_exclusive_group()
    given.add_argument("--text", help="a text file to compare on; default: random tokens")
    given.add_argument(
        "--tokens",
        help="a file of rows to compare on: .npy, .json, or .npz of source and target",
    )
    parity.add_argument("--num-tokens", type=count, default=384, help="(%(default)s)")
    parity.add_argument("--seed", type=int, default=0, help="of the random tokens (%(default)s)")
    parity.add_argument(
        "--output", default="runs/parity", help="folder of the report (%(default)s)"
    )
    parity.add_argument(
        "--scratch",
        metavar="FOLDER",
        help="for a model larger than memory: where it and all that it computes are kept meanwhile",
    )
    parity.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_record_options(record: argparse.ArgumentParser) -> None:
    add_rules(record)
    record.add_argument("path", help="a checkpoint, as for `jaxllm parity`")
    record.add_argument("--output", required=True, metavar="PACK", help="a new folder")
    record.add_argument("--levels", nargs="+", metavar="LEVEL", help="default: all")
    record.add_argument(
        "--positions",
        type=lambda text: None if text == "all" else count(text),
        default=24,
        help="of each row whose numbers are kept, or all (%(default)s)",
    )
    record.add_argument("--text", help="a text file to compare on; default: random tokens")
    record.add_argument("--num-tokens", type=count, default=384, help="(%(default)s)")
    record.add_argument("--seed", type=int, default=0, help="of the random tokens (%(default)s)")


def _add_check_options(check: argparse.ArgumentParser) -> None:
    add_rules(check)
    check.add_argument("pack", help="what `jaxllm parity record` wrote")
    check.add_argument("path", help="the same checkpoint, in any spelling")
    check.add_argument(
        "--mesh", nargs="+", type=_axis, default=[], metavar="AXIS=SIZE", help="as in fsdp=4"
    )
    check.add_argument("--levels", nargs="+", metavar="LEVEL", help="default: all that it has")
    check.add_argument("--output", default="runs/parity", help="folder of the report (%(default)s)")
    check.add_argument("--json", action="store_true", help="print the report as JSON")


def _axis(text: str) -> tuple[str, int]:
    """An axis of a mesh and its size, for argparse."""
    name, _, size = text.partition("=")
    return name, count(size)


def _add_mesh_options(mesh: argparse.ArgumentParser) -> None:
    mesh.add_argument("config", help="a YAML file, as in configs/")
    mesh.add_argument("--json", action="store_true", help="print the differences as JSON")
    mesh.epilog = "Any field of the file can be overridden: --batch-size 16."


def _add_diff_options(diff: argparse.ArgumentParser) -> None:
    diff.add_argument("run_a", help="the folder of a run")
    diff.add_argument("run_b", help="the folder of another")
    diff.add_argument("--json", action="store_true", help="print everything as JSON")


def _parity(arguments: argparse.Namespace) -> int:
    from jaxllm.interop.parity import Inputs, check_checkpoint

    text = None if arguments.text is None else Path(arguments.text).read_text(encoding="utf-8")
    report = check_checkpoint(
        arguments.path,
        text=text,
        tokens=None if arguments.tokens is None else Inputs.read(Path(arguments.tokens)),
        num_tokens=arguments.num_tokens,
        seed=arguments.seed,
        levels=arguments.levels,
        rules=arguments.rules,
        scratch=arguments.scratch,
    )
    return _give(report, arguments)


def _give(report: "Report", arguments: argparse.Namespace) -> int:
    """Writes a report and prints it; the exit status that says whether all is well.

    Of several processes, which have the same report, the first does so.
    """
    import jax

    from jaxllm.interop.saving.multihost import agreed, leads

    with agreed(jax.process_count() > 1):
        if leads():
            _show(report, arguments)
    return 0 if report.ok else 1


def _show(report: "Report", arguments: argparse.Namespace) -> None:
    folder = Path(arguments.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "parity.json").write_text(json.dumps(report.to_json(), indent=2) + "\n")
    report.write_html(folder / "parity.html")
    if arguments.json:
        print(json.dumps(report.to_json()))
    else:
        from rich.console import Console

        Console().print(report.table())
        print(f"{folder}: parity.json, parity.html")


def _parity_record(arguments: argparse.Namespace) -> int:
    from jaxllm.interop.formats.byte_sizes import spell_size
    from jaxllm.interop.parity.golden import record_checkpoint

    text = None if arguments.text is None else Path(arguments.text).read_text(encoding="utf-8")
    num_bytes = record_checkpoint(
        arguments.path,
        arguments.output,
        positions=arguments.positions,
        levels=arguments.levels,
        text=text,
        num_tokens=arguments.num_tokens,
        seed=arguments.seed,
        rules=arguments.rules,
    )
    print(f"{arguments.output}: {spell_size(num_bytes)}")
    return 0


def _parity_check(arguments: argparse.Namespace) -> int:
    join_processes()
    from jaxllm.interop.parity.golden import check_pack
    from jaxllm.train import make_mesh

    mesh = make_mesh(**dict(arguments.mesh)) if arguments.mesh else None
    report = check_pack(
        arguments.pack,
        arguments.path,
        mesh=mesh,
        levels=arguments.levels,
        rules=arguments.rules,
    )
    return _give(report, arguments)


def _parity_mesh(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from jaxllm.train import load_config
    from jaxllm.train.verify.equality import compare_variants

    log_to_stderr()
    config = load_config(arguments.config, arguments.overrides)
    model = None
    if config.init_from is not None:
        from jaxllm.interop import load_pretrained

        model = load_pretrained(config.init_from, dtype="float32")
    equality = compare_variants(config, model)
    if arguments.json:
        print(json.dumps(equality.to_json()))
    else:
        Console().print(equality.table())
        print(equality.summary)
    return 0 if equality.first is None else 1


def _diff(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from jaxllm.train.verify.diff import diff_runs
    from jaxllm.train.verify.diff_table import render

    diff = diff_runs(arguments.run_a, arguments.run_b)
    if arguments.json:
        print(json.dumps(diff.to_json()))
    else:
        Console().print(render(diff))
    return 0 if diff.same else 1
