"""The command `jaxllm`. The one file that joins training and interop.

Each command imports what it needs when it runs, so that `--help` answers at once. Exit status:
0 if all is well, 1 if a checkpoint or a comparison is not, 2 if the command or a config is wrong.
"""

import argparse
import dataclasses
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxllm.config import Config
    from jaxllm.interop.parity import Report
    from jaxllm.models.decoder import Decoder
    from jaxllm.train.text import Tokenizer


# These take any field of a run's config as an option.
TAKE_OVERRIDES = ("train", "parity mesh")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    arguments, rest = _parser().parse_known_args(_joined(sys.argv[1:] if argv is None else argv))
    if rest and arguments.command not in TAKE_OVERRIDES:
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        _set_environment()
        arguments.overrides = rest
        return arguments.run(arguments)
    except KeyboardInterrupt:
        print("jaxllm: interrupted", file=sys.stderr)
        return 130
    except (ValueError, FloatingPointError, OSError) as error:
        return _explain(error)


def _joined(argv: Sequence[str]) -> list[str]:
    """`parity mesh CONFIG` is a command of two words; a folder of that name is `./mesh`."""
    if argv[:1] == ["parity"] and argv[1:2] and argv[1] in ("record", "check", "mesh"):
        return [" ".join(argv[:2]), *argv[2:]]
    return list(argv)


def _explain(error: Exception) -> int:
    """Prints what is wrong, without a traceback, and returns the exit status for it."""
    from jaxllm.interop import CheckpointError

    for line in str(error).splitlines():
        print(f"jaxllm: {line}", file=sys.stderr)
    return 1 if isinstance(error, CheckpointError | FloatingPointError) else 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jaxllm",
        description="Move language models between PyTorch and JAX with the numbers proven equal, "
        "and train and sample them.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[..., int], purpose: str, *, add_help: bool = True
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=purpose, description=purpose, add_help=add_help)
        command.set_defaults(run=run)
        return command

    quickstart = add("quickstart", _quickstart, "The whole loop on this machine, with proof.")
    quickstart.add_argument("--output", default="runs/quickstart", help="folder (%(default)s)")
    quickstart.add_argument("--steps", type=_count, default=400, help="of training (%(default)s)")

    train = add("train", _train, "Train the run that a YAML file describes.", add_help=False)
    train.set_defaults(show_help=train.print_help)
    train.add_argument("config", nargs="?", help="a YAML file, as in configs/")
    train.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    train.epilog = (
        "Any field of the file can be overridden: --optimizer.learning-rate 1e-4. "
        "`jaxllm train FILE --help` lists them."
    )

    plan = add("plan", _plan, "Say what a run will take, before it is started.")
    plan.add_argument("config", help="a YAML file, as in configs/")
    plan.add_argument("--plot", metavar="PNG", help="draw the learning rate")
    plan.add_argument("--json", action="store_true", help="print the figures as JSON")

    generate = add("generate", _generate, "Continue prompts with a model.")
    generate.add_argument("path", help="a checkpoint of any known family, or a run")
    generate.add_argument("--prompt", action="append", required=True, help="may be repeated")
    generate.add_argument("--max-new-tokens", type=_count, default=128, help="(%(default)s)")
    generate.add_argument(
        "--temperature", type=float, default=0.0, help="0 is greedy (%(default)s)"
    )
    generate.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        help="above 1: tokens already in the text are less likely (%(default)s: none)",
    )
    generate.add_argument("--top-k", type=_count)
    generate.add_argument("--top-p", type=float)
    generate.add_argument("--beams", type=_count, help="search for the likeliest text instead")
    generate.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    generate.add_argument("--dtype", help="float32, bfloat16 or float16; default: as stored")
    generate.add_argument("--tokenizer", help="a tokenizer.json; default: the checkpoint's own")
    generate.add_argument("--json", action="store_true", help="print prompts and tokens as JSON")

    _add_convert_options(add("convert", _convert, "Write a checkpoint in another spelling."))
    purpose = "Prove that a checkpoint survives the way there and back."
    _add_verify_options(add("verify", _verify, purpose))

    inspect = add("inspect", _inspect, "Say what lies in a folder, and whether it would load.")
    inspect.add_argument("path", help="any folder of tensors")
    inspect.add_argument("--json", action="store_true", help="print everything as JSON")
    _add_rules(inspect)

    suggest = add("suggest", _suggest, "Propose rules for tensors that have none.")
    suggest.add_argument("path", help="a file or a folder of tensors")
    suggest.add_argument("--config", help="a YAML file of the fields of the model's config")
    _add_rules(suggest)

    _add_proofs(add)
    return parser


def _add_proofs(add: Callable[..., argparse.ArgumentParser]) -> None:
    purpose = "Compare a Hugging Face checkpoint, run by transformers, with ours."
    _add_parity_options(add("parity", _parity, purpose))

    purpose = "Write down what PyTorch computes, to be checked where it is not installed."
    _add_record_options(add("parity record", _parity_record, purpose))
    purpose = "Compare a checkpoint with what was recorded, on any mesh, without PyTorch."
    _add_check_options(add("parity check", _parity_check, purpose))
    _add_mesh_options(add("parity mesh", _parity_mesh, "Compare every layout with one device."))
    _add_diff_options(add("diff", _diff, "Say at which step two runs part, and in what."))


def _add_rules(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--rules", help="a Python file, which is run: a model of your own (docs/rules.md)"
    )


def _add_convert_options(convert: argparse.ArgumentParser) -> None:
    _add_rules(convert)
    convert.add_argument("source", help="a checkpoint of any known family, or a run")
    convert.add_argument("destination", help="a folder that does not exist yet")
    formats = ("hf", "meta", "tlama", "llm", "nima", "components", "native", "rules")
    convert.add_argument("--to", choices=formats, help="default: hf")
    convert.add_argument("--dtype", help="float32, bfloat16 or float16; default: as stored")
    convert.add_argument("--model-parallel", type=_count, help="shards to write, for meta")
    convert.add_argument("--step", type=int, help="of a run; default: its newest")
    convert.add_argument("--max-ram", default="256MiB", help="for tensors (%(default)s)")
    _add_optimizer_options(convert)
    convert.epilog = "After a kill the same command goes on where it was."


def _add_optimizer_options(convert: argparse.ArgumentParser) -> None:
    convert.add_argument(
        "--with-optimizer",
        action="store_true",
        help="take the state of AdamW along: of a run, for PyTorch; or PyTorch's, into a run",
    )
    convert.add_argument("--config", help="into a run: its YAML file, with init_from")
    convert.add_argument(
        "--optimizer", metavar="PATH", help="into a run: PyTorch's file or DCP folder, if elsewhere"
    )
    forms = ("state_dict", "dcp")
    convert.add_argument("--optimizer-format", choices=forms, help="of a run; default: state_dict")
    convert.add_argument(
        "--parameter-names",
        metavar="FILE",
        help="of the PyTorch model in its order, one on each line, if nothing else says it",
    )


def _add_verify_options(verify: argparse.ArgumentParser) -> None:
    _add_rules(verify)
    verify.add_argument("path", help="a checkpoint of any known family, or a run")
    verify.add_argument("--step", type=int, help="of a run; default: its newest")
    verify.add_argument(
        "--manifest", help="a file of the tensors' sha256: compared if it exists, else written"
    )
    verify.add_argument("--max-ram", default="256MiB", help="for tensors (%(default)s)")
    verify.add_argument("--json", action="store_true", help="print the findings as JSON")


def _add_parity_options(parity: argparse.ArgumentParser) -> None:
    _add_rules(parity)
    parity.add_argument("path", help="a checkpoint of Hugging Face or of a source system")
    parity.add_argument(
        "--levels",
        nargs="+",
        metavar="LEVEL",
        help="of weights, config, logits, layers, gradients, step, curve and generate; "
        "default: all but curve, which takes longest",
    )
    given = parity.add_mutually_exclusive_group()
    given.add_argument("--text", help="a text file to compare on; default: random tokens")
    given.add_argument(
        "--tokens",
        help="a file of rows to compare on: .npy, .json, or .npz of source and target",
    )
    parity.add_argument("--num-tokens", type=_count, default=384, help="(%(default)s)")
    parity.add_argument("--seed", type=int, default=0, help="of the random tokens (%(default)s)")
    parity.add_argument(
        "--output", default="runs/parity", help="folder of the report (%(default)s)"
    )
    parity.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_record_options(record: argparse.ArgumentParser) -> None:
    _add_rules(record)
    record.add_argument("path", help="a checkpoint, as for `jaxllm parity`")
    record.add_argument("--output", required=True, metavar="PACK", help="a new folder")
    record.add_argument("--levels", nargs="+", metavar="LEVEL", help="default: all")
    record.add_argument(
        "--positions",
        type=lambda text: None if text == "all" else _count(text),
        default=24,
        help="of each row whose numbers are kept, or all (%(default)s)",
    )
    record.add_argument("--text", help="a text file to compare on; default: random tokens")
    record.add_argument("--num-tokens", type=_count, default=384, help="(%(default)s)")
    record.add_argument("--seed", type=int, default=0, help="of the random tokens (%(default)s)")


def _add_check_options(check: argparse.ArgumentParser) -> None:
    _add_rules(check)
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
    return name, _count(size)


def _add_mesh_options(mesh: argparse.ArgumentParser) -> None:
    mesh.add_argument("config", help="a YAML file, as in configs/")
    mesh.add_argument("--json", action="store_true", help="print the differences as JSON")
    mesh.epilog = "Any field of the file can be overridden: --batch-size 16."


def _add_diff_options(diff: argparse.ArgumentParser) -> None:
    diff.add_argument("run_a", help="the folder of a run")
    diff.add_argument("run_b", help="the folder of another")
    diff.add_argument("--json", action="store_true", help="print everything as JSON")


def _count(text: str) -> int:
    """A whole number of at least one, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _quickstart(arguments: argparse.Namespace) -> int:
    from jaxllm.quickstart import quickstart

    _log_to_stderr()
    return 0 if quickstart(Path(arguments.output), arguments.steps) else 1


def _train(arguments: argparse.Namespace) -> int:
    if arguments.config is None:
        arguments.show_help()
        return 0 if {"-h", "--help"} & set(arguments.overrides) else 2
    from jaxllm.interop import load_pretrained
    from jaxllm.train import load_config, make_mesh, train

    _log_to_stderr()
    config = load_config(arguments.config, arguments.overrides)
    model = None
    if config.init_from is not None and not arguments.resume:
        mesh = make_mesh(**dataclasses.asdict(config.mesh))
        model = load_pretrained(config.init_from, mesh=mesh, dtype="float32")
    result = train(config, model, resume=arguments.resume)
    if result.held_out_loss is not None:
        print(f"held-out loss {result.held_out_loss:.4f} {result.unit}")
    print(f"{config.output}: config.yaml, metrics.jsonl, loss.png, checkpoints/")
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    from jaxllm.train import load_config
    from jaxllm.train.plan import plan
    from jaxllm.train.plot import plot_schedule

    config = load_config(arguments.config)
    planned = plan(config)
    if arguments.plot:
        plot_schedule(config.optimizer, config.steps, arguments.plot)
    if arguments.json:
        print(json.dumps(planned._asdict()))
    else:
        print(planned)
    return 0


def _generate(arguments: argparse.Namespace) -> int:
    from jaxllm.generation import Sampling, beam_search, generate
    from jaxllm.interop import load_pretrained

    penalty = arguments.repetition_penalty
    sampling = Sampling(
        repetition_penalty=penalty,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
    )
    model = load_pretrained(arguments.path, dtype=arguments.dtype)
    tokenizer = _tokenizer(arguments.path, arguments.tokenizer, model)
    if arguments.beams and sampling != Sampling(repetition_penalty=penalty):
        raise ValueError("--beams does not sample: give no temperature, top-k or top-p")
    prompts = [tokenizer.encode_prompt(prompt) for prompt in arguments.prompt]
    limit, eos_ids = arguments.max_new_tokens, [tokenizer.eos_id]
    if arguments.beams:
        tokens = beam_search(
            model,
            prompts,
            limit,
            num_beams=arguments.beams,
            repetition_penalty=penalty,
            eos_ids=eos_ids,
        )
    else:
        tokens = generate(
            model, prompts, limit, sampling=sampling, eos_ids=eos_ids, seed=arguments.seed
        )
    for prompt, new in zip(arguments.prompt, tokens, strict=True):
        text = tokenizer.decode([token for token in new if token != tokenizer.eos_id])
        if arguments.json:
            print(json.dumps({"prompt": prompt, "text": text, "tokens": new}))
        else:
            print(prompt + text)
    return 0


def _tokenizer(path: str, given: str | None, model: "Decoder") -> "Tokenizer":
    """The tokenizer asked for, else that of the run, the checkpoint or its origin, else bytes."""
    from jaxllm.train import load_config
    from jaxllm.train.data import DataConfig
    from jaxllm.train.pairs import PairsConfig
    from jaxllm.train.text import load_tokenizer

    if given is None and (Path(path) / "config.yaml").is_file():
        data = load_config(Path(path) / "config.yaml").data
        if not isinstance(data, DataConfig | PairsConfig):
            raise ValueError(f"{path} was not trained on text, and has no tokenizer: {data}")
        return load_tokenizer(data.tokenizer, eos=data.eos)
    folders = [Path(path)] if model.origin is None else [Path(path), Path(model.origin.directory)]
    own = next((folder for folder in folders if (folder / "tokenizer.json").is_file()), None)
    tokenizer = load_tokenizer(given or own)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
        )
    if given is None and own is None and model.config.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"{path} has no tokenizer.json, and its vocabulary of {model.config.vocab_size} tokens "
            "is not bytes: give --tokenizer"
        )
    return tokenizer


def _convert(arguments: argparse.Namespace) -> int:
    from jaxllm import handover
    from jaxllm.interop import convert
    from jaxllm.interop.sizes import spell_size

    if handover.is_into_run(arguments):
        return handover.into_run(arguments)
    begun = time.perf_counter()
    with _progress_bar(arguments.destination) as progress:
        done = convert(
            arguments.source,
            arguments.destination,
            to=arguments.to or "hf",
            dtype=arguments.dtype,
            model_parallel=arguments.model_parallel,
            step=arguments.step,
            max_ram=arguments.max_ram,
            progress=progress,
            rules=arguments.rules,
            optimizer=handover.optimizer_of(arguments) if arguments.with_optimizer else None,
        )
    seconds = time.perf_counter() - begun
    kept = (
        f", {spell_size(done.num_bytes_kept)} of them there already" if done.num_bytes_kept else ""
    )
    print(
        f"{arguments.destination}: {done.spelling}, {spell_size(done.num_bytes)}{kept}, "
        f"{seconds:.1f} s"
    )
    return 0


@contextmanager
def _progress_bar(purpose: str) -> Iterator[Callable[[int, int], None] | None]:
    """A function to be told of bytes done and to be done; None where nobody looks."""
    from rich import progress
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        yield None
        return
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(purpose, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _verify(arguments: argparse.Namespace) -> int:
    from jaxllm.interop import verify

    found = verify(
        arguments.path,
        step=arguments.step,
        manifest=arguments.manifest,
        max_ram=arguments.max_ram,
        rules=arguments.rules,
    )
    if arguments.json:
        print(json.dumps(found.to_json()))
    else:
        for problem in found.problems:
            print(problem)
        print(found.summary)
    return 0 if found.ok else 1


def _inspect(arguments: argparse.Namespace) -> int:
    from jaxllm.interop import inspect

    inspection = inspect(arguments.path, rules=arguments.rules)
    if arguments.json:
        print(json.dumps(inspection.to_json()))
    else:
        from rich.console import Console

        from jaxllm.interop.listing import render

        Console().print(render(inspection))
    return 0 if inspection.ok else 1


def _suggest(arguments: argparse.Namespace) -> int:
    from jaxllm.interop import suggest

    config = None if arguments.config is None else _read_config(Path(arguments.config))
    print(suggest(arguments.path, config, rules=arguments.rules))
    return 0


def _read_config(path: Path) -> "Config":
    import yaml

    from jaxllm.config import from_dict

    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise ValueError(f"{path} is not a file of fields")
    return from_dict(fields)


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
    )
    return _give(report, arguments)


def _give(report: "Report", arguments: argparse.Namespace) -> int:
    """Writes a report and prints it; the exit status that says whether all is well."""
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
    return 0 if report.ok else 1


def _parity_record(arguments: argparse.Namespace) -> int:
    from jaxllm.interop.parity.golden import record_checkpoint
    from jaxllm.interop.sizes import spell_size

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
    from jaxllm.train.equality import compare_variants

    _log_to_stderr()
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

    from jaxllm.train.diff import diff_runs
    from jaxllm.train.diff_table import render

    diff = diff_runs(arguments.run_a, arguments.run_b)
    if arguments.json:
        print(json.dumps(diff.to_json()))
    else:
        Console().print(render(diff))
    return 0 if diff.same else 1


def _log_to_stderr() -> None:
    """Shows what the library says of its progress, and not what its dependencies say."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("jaxllm")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _set_environment() -> None:
    """Threads for virtual devices; no progress bars and remarks of libraries below ours."""
    if devices := os.environ.get("JAX_NUM_CPU_DEVICES"):
        # XLA's own default starves collectives; see `train.mesh.use_virtual_devices`.
        os.environ.setdefault("NPROC", str(8 * int(devices)))
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("absl").setLevel(logging.ERROR)
