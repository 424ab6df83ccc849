"""DPO beside TRL's DPOTrainer: the same tokens, losses, gradients and 20 steps."""

import json
import warnings

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from tiers import examples
from tiny import relative_l2
from tokenizer_kinds import save_tokenizer

from jaxllm.interop import load_pretrained
from jaxllm.interop.adapters.merging import open_adapter
from jaxllm.lora.config import LoraConfig
from jaxllm.params import named_parameters
from jaxllm.train import TrainConfig, make_mesh
from jaxllm.train.data import DataConfig, PreferencesConfig
from jaxllm.train.finetuning.start import init_state, model_to_train, starting_weights
from jaxllm.train.loss import DpoConfig, LossConfig
from jaxllm.train.objective import get_objective
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.preference.dpo import find_objective
from jaxllm.train.step import make_steps

WORDS = ["the", "cat", "and", "hat", "Hello", "123"]
RATE, BATCH, T, STEPS = 0.003, 4, 47, 20
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def say(number: int, count: int) -> str:
    return " ".join(WORDS[(number + i * (1 + number % 4)) % 6] for i in range(count))


def preferences(count: int, *, chat: bool) -> list[dict]:
    records = []
    for n in range(count):
        prompt, chosen, rejected = say(n, 3), say(n + 1, 2 + n % 3), say(n + 2, 1 + n % 4)
        if chat:
            ask, *answers = (
                [{"role": role, "content": text}]
                for role, text in (("user", prompt), ("assistant", chosen), ("assistant", rejected))
            )
            records.append({"prompt": ask, "chosen": answers[0], "rejected": answers[1]})
        else:
            records.append({"prompt": prompt, "chosen": f" {chosen}", "rejected": f" {rejected}"})
    return records


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A folder with a small random Llama and its tokenizer."""
    import transformers

    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{"vocab_size": 512, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.15 + (parameter.ndim == 1))
    model.save_pretrained(folder)
    save_tokenizer("byte-level", folder, chat_template=TEMPLATE)
    return folder


def trainer_of(folder, tmp_path, records, loss: DpoConfig, peft_config=None):
    import datasets
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of packages that TRL imports
        from trl import DPOConfig, DPOTrainer

        options = DPOConfig(
            output_dir=str(tmp_path / "trl"),
            beta=loss.beta,
            loss_type=[loss.name],
            label_smoothing=loss.label_smoothing,
            max_length=T + 1,
            per_device_train_batch_size=BATCH,
            report_to=[],
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_dropout=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer.pad_token = tokenizer.eos_token
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return DPOTrainer(
            model=model,
            ref_model=None,
            args=options,
            train_dataset=datasets.Dataset.from_list(records),
            processing_class=tokenizer,
            peft_config=peft_config,
        )


def our_rows(folder, tmp_path, records):
    file = tmp_path / "preferences.jsonl"
    file.write_text("\n".join(map(json.dumps, records)) + "\n")
    data = PreferencesConfig(preferences=(str(file),), tokenizer=str(folder), held_out=0)
    return data, data.load(load_pretrained(folder), T)


@pytest.mark.parametrize("chat", examples([False, True], False))
def test_tokens_and_targets_are_those_of_trl(chat, start, tmp_path):
    records = preferences(12, chat=chat)
    trainer = trainer_of(start, tmp_path, records, DpoConfig())
    theirs = trainer.data_collator([trainer.train_dataset[n] for n in range(12)])
    _, (rows, *_) = our_rows(start, tmp_path, records)
    found = rows.take(np.arange(12))
    width = theirs["input_ids"].shape[1]
    tokens, real, answer = (
        theirs[name].numpy().reshape(2, 12, width).swapaxes(0, 1)
        for name in ("input_ids", "attention_mask", "completion_mask")
    )
    np.testing.assert_array_equal(found["tokens"][:, :, :width] * real, tokens * real)
    np.testing.assert_array_equal(found["targets"][:, :, : width - 1], answer[:, :, 1:])
    assert found["targets"].any(axis=2).all()
    assert not found["targets"][:, :, width - 1 :].any()


def flat(tree) -> dict[str, np.ndarray]:
    found = nnx.traversals.flatten_mapping(tree).items()
    return {".".join(map(str, path)): np.asarray(x) for path, x in found}


def disturb(model: torch.nn.Module) -> None:
    """Changes what is trained, so that the model is not its reference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def saved_parameters(model, folder, start) -> dict[str, np.ndarray]:
    """The trained parameters of a model in PyTorch, by our names."""
    model.save_pretrained(folder)
    if (folder / "adapter_config.json").exists():
        return open_adapter(folder, load_pretrained(start)).arrays
    arrays = named_parameters(load_pretrained(folder))
    return {name: np.asarray(variable.get_value()) for name, variable in arrays.items()}


def loss_of(trainer, numbers) -> torch.Tensor:
    batch = trainer.data_collator([trainer.train_dataset[int(n)] for n in numbers])
    return trainer.compute_loss(trainer.model, batch)


CASES = {
    "sigmoid": (DpoConfig(beta=0.3), None),
    "robust": (DpoConfig(name="robust", label_smoothing=0.1), None),
    "hinge": (DpoConfig(name="hinge", beta=0.4), None),
    "ipo": (DpoConfig(name="ipo", beta=0.5), None),
    "lora": (DpoConfig(beta=0.3), LoraConfig(rank=4, alpha=6, targets=("q_proj", "down_proj"))),
    "lora with the head in full": (
        DpoConfig(beta=0.3),
        LoraConfig(rank=4, alpha=6, targets=("v_proj",), full=("lm_head",)),
    ),
}


def peft_config(lora: LoraConfig | None):
    import peft

    if lora is None:
        return None
    return peft.LoraConfig(
        **{"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": list(lora.targets)},
        **{"modules_to_save": list(lora.full) or None, "init_lora_weights": False},
        task_type="CAUSAL_LM",
    )


def our_run(folder, parameters, config: TrainConfig, mesh):
    """Returns the functions of a run, and its state: the reference of `folder`, and parameters."""
    model = model_to_train(config, load_pretrained(folder))
    steps = make_steps(config, model, mesh)
    state = init_state(steps, starting_weights(config, model, mesh))
    assert flat(state.params).keys() == parameters.keys()
    placed = jax.tree.map(lambda x: x.sharding, steps.abstract_state.params)
    paths = nnx.traversals.flatten_mapping(state.params)
    given = {path: parameters[".".join(map(str, path))] for path in paths}
    params = jax.device_put(nnx.traversals.unflatten_mapping(given), placed)
    return steps, state._replace(params=params)


def run_config(data, loss: DpoConfig, lora: LoraConfig | None, **changes) -> TrainConfig:
    optimizer = {"learning_rate": RATE, "decay": "constant", "weight_decay": 0.0, "clip_norm": None}
    optimizer |= changes.pop("optimizer", {})
    return TrainConfig(
        output="unused",
        steps=STEPS,
        batch_size=BATCH,
        seq_len=T,
        init_from="start",
        data=data,
        loss=LossConfig(chunk_tokens=64, dpo=loss),
        optimizer=OptimizerConfig(**optimizer, lora=lora),
        **changes,
    )


@pytest.mark.parametrize("case", examples(CASES, "sigmoid"))
def test_losses_and_gradients_are_those_of_trl(case, start, tmp_path):
    loss, lora = CASES[case]
    records = preferences(BATCH, chat=False)
    trainer = trainer_of(start, tmp_path, records, loss, peft_config(lora))
    disturb(trainer.model)
    before = saved_parameters(trainer.model, tmp_path / "before", start)
    expected = loss_of(trainer, range(BATCH))
    expected.backward()
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.copy_(parameter.grad)
    gradients = saved_parameters(trainer.model, tmp_path / "gradients", start)

    data, (rows, *_) = our_rows(start, tmp_path, records)
    sgd = {"name": "sgd", "momentum": 0.0, "nesterov": False, "learning_rate": 1.0}
    config = run_config(data, loss, lora, accumulate=2, optimizer=sgd)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        steps, state = our_run(start, before, config, mesh)
        state, metrics = steps.train(state, rows.take(np.arange(BATCH)))
    np.testing.assert_allclose(float(metrics["loss"]), expected.item(), rtol=1e-5)
    assert float(metrics["reward/margin"]) != 0
    for name, after in flat(state.params).items():
        assert relative_l2(before[name] - after, gradients[name]) < 1e-5, name


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ["sigmoid", "lora"])
def test_twenty_steps_are_those_of_trl(case, start, tmp_path):
    loss, lora = CASES[case]
    records = preferences(STEPS * BATCH, chat=True)
    numbers = np.random.default_rng(0).permutation(len(records)).reshape(STEPS, BATCH)
    trainer = trainer_of(start, tmp_path, records, loss, peft_config(lora))
    before = saved_parameters(trainer.model, tmp_path / "before", start)
    trained = [x for x in trainer.model.parameters() if x.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0)
    expected = []
    for chosen in numbers:
        optimizer.zero_grad()
        value = loss_of(trainer, chosen)
        value.backward()
        optimizer.step()
        expected.append(value.item())
    after = saved_parameters(trainer.model, tmp_path / "after", start)

    data, (rows, *_) = our_rows(start, tmp_path, records)
    mesh, losses = make_mesh(devices=jax.devices()[:1]), []
    with jax.set_mesh(mesh):
        steps, state = our_run(start, before, run_config(data, loss, lora), mesh)
        for chosen in numbers:
            state, metrics = steps.train(state, rows.take(chosen))
            losses.append(float(metrics["loss"]))
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    assert losses[-1] < losses[0] - 0.01
    for name, found in flat(state.params).items():
        assert relative_l2(found, after[name]) < 1e-4, name


def test_only_preferences_have_this_objective(start):
    model = load_pretrained(start)
    data = PreferencesConfig(preferences=("a.jsonl",))
    assert find_objective(model, data).unit == "nats per preference"
    assert find_objective(model, DataConfig()) == get_objective(model)
