"""The command `eval`: the perplexity of a model on files."""

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

from jaxllm.commands.environment import keep_programs, log_to_stderr, say
from jaxllm.commands.options import (
    AddCommand,
    add_allowances,
    add_dtype,
    add_json,
    allowances,
    count,
    mesh_axis,
    mesh_sizes,
)
from jaxllm.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxllm.models import Model

LONGEST = 2048  # tokens of a row, unless the model sees fewer or an option says otherwise
PACKINGS = ("best_fit", "padded", "separate", "joined")


def add_commands(add: AddCommand) -> None:
    """Adds `eval` to the command line."""
    command = add(
        "eval",
        _evaluate,
        "Measure the perplexity of a model on files.",
        "jaxllm eval runs/tiny 'books/*.txt' --batch-size 8",
    )
    command.add_argument(
        "path",
        metavar="MODEL",
        help="a checkpoint in any format, a run, a GGUF file, or an adapter of PEFT or of a run",
    )
    command.add_argument(
        "files", nargs="+", metavar="FILE", help="text files, folders or patterns (docs/data.md)"
    )
    command.add_argument("--base", metavar="PATH", help="the base of an adapter, if it has moved")
    command.add_argument("--text-key", default="text", metavar="KEY", help="(default: text)")
    command.add_argument(
        "--tokenizer",
        metavar="PATH",
        help="tokenizer.json, a folder with tokenizer files, or 'bytes' (default: the model's)",
    )
    command.add_argument(
        "--seq-len",
        type=count,
        metavar="N",
        help=f"tokens of a row; longer documents are cut (default: what the model sees, at most "
        f"{LONGEST:,})",
    )
    command.add_argument(
        "--batch-size", type=count, default=8, metavar="N", help="rows at a time (default: 8)"
    )
    command.add_argument(
        "--packing",
        choices=PACKINGS,
        default="best_fit",
        help="how documents share rows (default: %(default)s, where they do not see each other)",
    )
    command.add_argument(
        "--mesh",
        nargs="+",
        type=mesh_axis,
        default=[],
        metavar="AXIS=SIZE",
        help="mesh to shard the model and the rows over (default: one device)",
    )
    add_dtype(command)
    add_allowances(command)
    add_json(command, "the figures")


def _evaluate(arguments: argparse.Namespace) -> int:
    import jax

    from jaxllm.commands.generation.tokenizers import find_tokenizer_of
    from jaxllm.config import check_has_head
    from jaxllm.hub import local_path
    from jaxllm.models import Decoder
    from jaxllm.models.stack import check_positions
    from jaxllm.train import make_mesh
    from jaxllm.train.data.documents import DataConfig, load_corpus
    from jaxllm.train.evaluation.perplexity import measure_perplexity

    log_to_stderr()
    keep_programs()
    path = str(local_path(arguments.path))
    one = {} if arguments.mesh else {"devices": jax.devices()[:1]}
    mesh = make_mesh(**mesh_sizes(arguments.mesh), **one)
    with jax.set_mesh(mesh):
        model = _load(path, mesh, arguments)
        if not isinstance(model, Decoder):
            raise UserError(
                f"{arguments.path} is a {type(model).__name__}; the perplexity of texts is "
                "measured of a Decoder"
            )
        seq_len = arguments.seq_len or min(model.config.max_len, LONGEST)
        check_has_head(model.config, "predict tokens")
        check_positions(seq_len, model.config)
        _, tokenizer = find_tokenizer_of(path, arguments.tokenizer, model)
        data = DataConfig(
            text=tuple(arguments.files),
            text_key=arguments.text_key,
            packing=arguments.packing,
            held_out=0,
        )
        rows = load_corpus(data, tokenizer).windows(seq_len).train
        found = measure_perplexity(model, rows, batch_size=arguments.batch_size, mesh=mesh)
    if arguments.json:
        print(json.dumps({**found._asdict(), "seq_len": seq_len}))
    else:
        say(
            f"loss {found.loss:.4f} nats per token  perplexity {found.perplexity:.6g}  bits per "
            f"token {found.loss / math.log(2):.4f}  tokens {found.tokens:,}  length {seq_len:,}"
        )
    return 0


def _load(path: str, mesh: "Mesh", arguments: argparse.Namespace) -> "Model":
    """Loads a model, or an adapter with its base."""
    from pathlib import Path

    from jaxllm.interop import load_pretrained
    from jaxllm.interop.adapters.merging import is_adapter, load_adapter

    options: dict[str, Any] = {"mesh": mesh, "dtype": arguments.dtype}
    if is_adapter(Path(path)):
        if arguments.allow or not arguments.strict:
            raise UserError(
                f"{arguments.path} is an adapter, whose base is read strictly: leave out --allow "
                "and --no-strict"
            )
        return load_adapter(path, arguments.base, **options)
    if arguments.base is not None:
        raise UserError(f"--base: {arguments.path} is no adapter")
    return load_pretrained(path, **options, **allowances(arguments))
