"""Commands that train, and that say what a run will take."""

import argparse
import dataclasses
import json
from pathlib import Path

from .log import log_to_stderr
from .options import Add, count
from .processes import join_processes


def add_commands(add: Add) -> None:
    """`quickstart`, `train` and `plan`."""
    quickstart = add("quickstart", _quickstart, "The whole loop on this machine, with proof.")
    quickstart.add_argument("--output", default="runs/quickstart", help="folder (%(default)s)")
    quickstart.add_argument("--steps", type=count, default=400, help="of training (%(default)s)")

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


def _quickstart(arguments: argparse.Namespace) -> int:
    from jaxllm.quickstart import quickstart

    log_to_stderr()
    return 0 if quickstart(Path(arguments.output), arguments.steps) else 1


def _train(arguments: argparse.Namespace) -> int:
    if arguments.config is None:
        arguments.show_help()
        return 0 if {"-h", "--help"} & set(arguments.overrides) else 2
    join_processes()
    import jax

    from jaxllm.interop import load_pretrained
    from jaxllm.train import load_config, make_mesh, train

    log_to_stderr()
    config = load_config(arguments.config, arguments.overrides)
    model = None
    if config.init_from is not None and not arguments.resume:
        mesh = make_mesh(**dataclasses.asdict(config.mesh))
        model = load_pretrained(config.init_from, mesh=mesh, dtype="float32")
    result = train(config, model, resume=arguments.resume)
    if jax.process_index() == 0:
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
