"""From chats to an adapter in PEFT, by commands: killed, resumed, merged; and TRL beside it."""

import copy
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import peft
import pytest
import torch
from adapter_cases import draw, open_base
from tokenizer_kinds import save_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from jaxllm.cli import main
from jaxllm.generation import Sampling, generate
from jaxllm.interop import load_pretrained
from jaxllm.interop.adapters.adapter import Adapter
from jaxllm.interop.adapters.merging import load_adapter
from jaxllm.interop.adapters.peft_writing import write_adapter
from jaxllm.params import named_parameters, split
from jaxllm.train import load_config, make_mesh
from jaxllm.train.finetuning.start import init_state, model_to_train, starting_weights
from jaxllm.train.monitoring.metrics import read_metrics
from jaxllm.train.setup import make_batches
from jaxllm.train.step import make_steps

STEPS, BATCH, T = 12, 8, 63
ULP = 2.0**-23
WORDS = ["the", "cat", "and", "hat", "Hello", "123"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
RUN = f"""
output: runs/whole
init_from: base
steps: {STEPS}
batch_size: {BATCH}
seq_len: {T}
data: {{chat: [talks.jsonl], held_out: 0, packing: padded}}
mesh: {{data: 2, fsdp: 2, tensor: 2}}
optimizer:
  learning_rate: 0.01
  decay: constant
  weight_decay: 0.1
  lora: {{rank: 4, alpha: 8, targets: [q_proj, v_proj, down_proj]}}
logging: {{tensorboard: false}}
save_every: 3
eval_every: 100
keep: 9
"""
SIZES = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 320},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
}


def talk(number: int) -> dict:
    say = lambda start, count: " ".join(WORDS[(start * (i + 3)) % 6] for i in range(count))  # noqa: E731
    question = {"role": "user", "content": f"{number} {say(number, 2)}"}
    answer = {"role": "assistant", "content": f"{say(number + 1, 3)} {number}"}
    return {"messages": [question, answer]}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base with a tokenizer and a chat template, 96 chats, and a finished run."""
    folder = tmp_path_factory.mktemp("chats")
    draw(model := AutoModelForCausalLM.from_config(LlamaConfig(**SIZES)), seed=0)
    model.save_pretrained(folder / "base")
    save_tokenizer("byte-level", folder / "base", chat_template=TEMPLATE)
    lines = (json.dumps(talk(number)) for number in range(STEPS * BATCH))
    (folder / "talks.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "run.yaml").write_text(RUN)
    command(folder, "train", "run.yaml")
    return folder


def command(folder: Path, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jaxllm", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def kill_after(folder: Path, step: int, *arguments: str) -> None:
    """Kills a command of a run with SIGKILL as soon as a checkpoint is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxllm", *arguments],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = folder / "runs" / "killed" / "checkpoints" / str(step)
    try:
        while process.poll() is None and not checkpoint.exists():
            time.sleep(0.002)
        assert process.poll() is None, "the run ended before it could be killed"
    finally:
        process.kill()
        process.wait()


@pytest.mark.exhaustive
def test_a_killed_run_on_a_mesh_ends_as_an_adapter_and_a_merged_model(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert main(["data", "run.yaml"]) == 0
    shown = capsys.readouterr().out
    assert "Hello" in shown
    kill_after(place, 3, "train", "run.yaml", "--output", "runs/killed")
    saved = {int(path.name) for path in Path("runs/killed/checkpoints").glob("[0-9]*")}
    saved = {step for step in saved if step < STEPS}
    assert saved
    command(place, "train", "run.yaml", "--output", "runs/killed", "--resume")
    assert main(["diff", "runs/whole", "runs/killed"]) == 0

    assert main(["convert", "runs/killed", "adapter", "--to", "peft"]) == 0
    theirs = peft.PeftModel.from_pretrained(open_base(Path("base")), "adapter").eval()
    ours = load_adapter("runs/killed")
    tokens = np.random.default_rng(0).integers(0, 320, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
        plain = open_base(Path("base"))(torch.tensor(tokens)).logits.numpy()
    found = np.asarray(jax.jit(lambda model: model(tokens)[0])(ours))
    assert np.abs(found - expected).max() < 1e-5
    assert np.abs(plain - expected).max() > 1e-2

    assert main(["convert", "runs/killed", "merged", "--merge"]) == 0
    tokenizer = AutoTokenizer.from_pretrained("merged")
    prompt = tokenizer.apply_chat_template(talk(3)["messages"][:1], return_dict=True)["input_ids"]
    merged = open_base(Path("merged"))
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    generated = merged.generate(torch.tensor([prompt]), max_new_tokens=20, **settings)[0]
    own = generate(
        load_pretrained("merged"), [prompt], max_new_tokens=20, sampling=Sampling(temperature=0)
    )
    assert [*map(int, own[0])][-20:] == generated[-20:].tolist()


def batches_of(folder: Path) -> tuple[list[np.ndarray], Path]:
    """The rows of our batches, and the adapter that the run begins with."""
    config = load_config(folder / "run.yaml")
    base = load_pretrained(folder / "base")
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = model_to_train(config, base)
        batches = make_batches(config, model, mesh)
        rows = [next(data)["tokens"] for data in [batches.train(0)] for _ in range(STEPS)]
        steps = make_steps(config, model, mesh)
        state = init_state(steps, starting_weights(config, model, mesh))
    trained = named_parameters(split(model)[0](state.weights))
    arrays = {n: np.asarray(x.get_value()) for n, x in trained.items() if ".lora." in n}
    scales = {name.removesuffix(".lora.a"): 2.0 for name in arrays if name.endswith(".a")}
    if not (folder / "start").exists():
        write_adapter(Adapter(scales=scales, arrays=arrays), base, folder / "start")
    return rows, folder / "start"


def chats_in_order(folder: Path, rows: list[np.ndarray]) -> list[dict]:
    """The chats of our batches, found by the tokens that transformers makes of them."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    chats = [talk(number) for number in range(STEPS * BATCH)]
    found = {
        tuple(tokenizer.apply_chat_template(one["messages"], return_dict=True)["input_ids"]): one
        for one in chats
    }
    assert len(found) == len(chats)
    ordered = []
    for row in np.concatenate(rows):
        (own,) = [tokens for tokens in found if (*row[: len(tokens)],) == tokens]
        ordered.append(found[own])
    return ordered


def train_in_trl(folder: Path, model, chats: list[dict], output: Path) -> list[float]:
    """The losses of TRL's SFTTrainer on these chats, in this order."""
    import datasets

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that TRL imports
        from trl import SFTConfig, SFTTrainer

        options = SFTConfig(
            output_dir=str(output),
            max_steps=STEPS,
            per_device_train_batch_size=BATCH,
            max_length=T + 1,
            assistant_only_loss=True,
            learning_rate=0.01,
            lr_scheduler_type="constant",
            weight_decay=0.1,
            adam_beta2=0.95,
            max_grad_norm=1.0,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder / "base")
        trainer = SFTTrainer(
            model=model,
            args=options,
            train_dataset=datasets.Dataset.from_list(chats),
            processing_class=tokenizer,
        )
        in_order = torch.utils.data.SequentialSampler
        trainer._get_train_sampler = lambda *given: in_order(
            given[0] if given else trainer.train_dataset
        )
        trainer.train()
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def perturbed(model, seed: int):
    """A copy whose weights differ in their last bits."""
    generator, other = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(
                1 + 16 * ULP * (2 * torch.rand(parameter.shape, generator=generator) - 1)
            )
    return other


@pytest.mark.exhaustive
def test_trl_has_the_same_losses_from_the_same_chats(place, tmp_path, monkeypatch):
    """Within what runs of TRL differ by whose weights differ in their last bits."""
    monkeypatch.chdir(place)
    rows, start = batches_of(place)
    chats = chats_in_order(place, rows)
    model = peft.PeftModel.from_pretrained(open_base(place / "base"), start, is_trainable=True)
    runs = [
        train_in_trl(place, copied, chats, tmp_path / str(number))
        for number, copied in enumerate(
            [copy.deepcopy(model), *(perturbed(model, i) for i in (0, 1, 2))]
        )
    ]
    expected, *others = np.array(runs)
    noise = np.maximum.accumulate(np.abs(others - expected).max(axis=0))
    ours = [
        row["loss"]
        for row in read_metrics(place / "runs" / "whole" / "metrics.jsonl")
        if "loss" in row
    ]
    assert len(ours) == len(expected) == STEPS
    assert abs(ours[0] - ours[-1]) > 0.05
    apart = np.abs(np.array(ours) - expected)
    assert (apart <= 4 * noise + 4 * ULP * expected).all(), (apart, noise)
