"""The command `quickstart`: PyTorch to JAX, training on a mesh, and back, each step verified."""

import logging
from collections.abc import Iterator
from pathlib import Path

import jax
from jax.sharding import Mesh

from jaxllm.config import DecoderConfig
from jaxllm.generation import Sampling, generate
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.interop.families.huggingface.pre_norm.llama import write_config
from jaxllm.interop.parity import Report, check_checkpoint
from jaxllm.interop.reference.transformers_models import (
    generate_greedily,
    open_exported,
    require_torch,
    save_random_llama,
)
from jaxllm.models.decoder import Decoder
from jaxllm.params import count_parameters
from jaxllm.tokenization import Tokenizer
from jaxllm.train import TrainConfig, make_mesh, train
from jaxllm.train.data.documents import load_corpus
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

LLAMA = DecoderConfig(
    vocab_size=256,  # the bytes
    embed_dim=256,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    mlp_dim=704,
    max_len=1024,
)
MESH = MeshConfig(fsdp=2, tensor=2)
MADE = ("llama", "llama_trained", "run", "parity_import.html", "parity_export.html")
PROMPTS = ("import os\n\n\ndef ", "class Queue:\n    def __init__(self", "for i in range(")
NEW_TOKENS = 64


def quickstart(folder: Path, steps: int) -> bool:
    """Runs the whole loop in `folder`, prints its measurements and returns whether all checks pass.

    Args:
        folder: for checkpoints, the run and the reports; an earlier quickstart there is removed.
        steps: number of training steps.

    Raises:
        UserError: `folder` holds other files.
        MissingPackageError: PyTorch or transformers is not installed.
    """
    require_torch()
    prepare(folder, MADE, "quickstart", MESH.fsdp * MESH.tensor)
    return run_checks(folder, _loop(folder, steps))


def _loop(folder: Path, steps: int) -> Iterator[Check]:
    """Runs the stages of the loop and yields the check of each."""
    source, exported = folder / "llama", folder / "llama_trained"
    mesh = make_mesh(fsdp=MESH.fsdp, tensor=MESH.tensor)

    log.info("\n1. A random Llama, built in PyTorch and saved by transformers: %s", source)
    save_random_llama(write_config(LLAMA, {}), source)

    log.info("\n2. Into JAX, onto a mesh of %d x %d virtual devices", MESH.fsdp, MESH.tensor)
    model = load_pretrained(source, mesh=mesh)
    log.info("%s parameters", f"{count_parameters(model):,}")
    yield parity_check("import parity", _compare(source, model), folder, "import")

    log.info("\n3. Trained on the text of Python's own standard library")
    config = run_config(folder, source, steps)
    model = train(config, model).model
    losses = held_out_losses(folder / "run")
    measured = f"{losses[0]:.3f} to {losses[-1]:.3f} nats per byte"
    learned = losses[0] > 5 and losses[-1] < 2.6
    yield Check("held-out loss", measured, "above 5, below 2.6", learned)

    log.info("\n4. Back to PyTorch: %s", exported)
    save_pretrained(model, exported)
    reloaded, complaints = open_exported(exported)
    yield load_check(complaints)
    corpus = load_corpus(config.data)
    tokenizer = corpus.tokenizer
    held_out = corpus.held_out.tokens[:4096]
    text = tokenizer.decode(held_out[held_out != tokenizer.eos_id])
    report = _compare(exported, model, text=text)
    yield parity_check("export parity", report, folder, "export")

    prompts = [tokenizer.encode_input(prompt, model.config) for prompt in PROMPTS]
    theirs = generate_greedily(reloaded, prompts, NEW_TOKENS)
    yield greedy_check(model, mesh, prompts, theirs)
    _show_sample(model, mesh, tokenizer)


def run_config(folder: Path, source: Path, steps: int) -> TrainConfig:
    """Returns the training config; the default 150 steps take about two minutes on two cores."""
    return TrainConfig(
        output=str(folder / "run"),
        init_from=str(source),
        steps=steps,
        batch_size=16,
        seq_len=128,
        mesh=MESH,
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=min(20, steps // 2)),
        logging=LoggingConfig(every=max(1, steps // 10)),
        eval_every=max(1, steps // 10),
        eval_batches=8,
        save_every=max(1, steps // 2),
    )


def _compare(path: Path, model: Decoder, text: str | None = None) -> Report:
    """Compares only the forward pass, to be quick; later stages cover training and generation."""
    return check_checkpoint(path, model=model, text=text, levels=("logits", "layers"))


def _show_sample(model: Decoder, mesh: Mesh, tokenizer: Tokenizer) -> None:
    text = PROMPTS[0]
    prompt = tokenizer.encode_input(text, model.config)
    sampling = Sampling(temperature=0.8, top_p=0.95)
    with jax.set_mesh(mesh):
        [tokens] = generate(model, [prompt], 240, sampling=sampling)
    log.info("\n5. A sample of its Python\n\n%s%s", text, tokenizer.decode(tokens))
