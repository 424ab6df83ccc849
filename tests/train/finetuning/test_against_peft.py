"""Training with LoRA beside PEFT on PyTorch: the same losses and parameters over 20 steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from adapter_cases import VOCABULARY, make_adapter
from flax import nnx
from tiny import relative_l2

from jaxllm.interop import load_pretrained
from jaxllm.interop.adapters.merging import open_adapter
from jaxllm.layers.adapters import low_rank
from jaxllm.lora.config import LoraConfig
from jaxllm.params import map_parameters
from jaxllm.train import TrainConfig, make_mesh
from jaxllm.train.finetuning.start import init_state, model_to_train, starting_weights
from jaxllm.train.optimizers.config import OptimizerConfig
from jaxllm.train.step import make_steps

STEPS, RATE, DROPPED = 20, 0.01, 0.25
# Without token 0, which pads: PyTorch gives its embedding no gradient.
BATCHES = np.random.default_rng(1).integers(1, VOCABULARY, (STEPS, 2, 10))
OPTIONS = {
    "llama": {"targets": ("q_proj", "down_proj"), "rslora": True},
    "norms and head in full": {
        "targets": ("o_proj",),
        "full": ("embed", "lm_head", "layers.*.attn_norm"),
    },
    "tied embedding in full": {"full": ("embed",)},
    "experts": {"targets": ("v_proj", "down_proj")},
}


def kept(shape: tuple[int, ...]) -> np.ndarray:
    """Which inputs dropout keeps: by the position and the feature, as both frameworks have them."""
    numbers = np.arange(shape[-2] * shape[-1]) * 2654435761 % 2**32 / 2**32
    return (numbers >= DROPPED).reshape(shape[-2:])


class Dropout(torch.nn.Module):
    """Dropout that keeps what `kept` says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.tensor(kept(tuple(x.shape))) / (1 - DROPPED)


def our_dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    if key is None:
        return x
    assert rate == DROPPED
    flat = x.reshape(*x.shape[:2], -1)
    return jnp.where(kept(flat.shape), flat / (1 - rate), 0).reshape(x.shape)


def train_ours(folder, lora: LoraConfig) -> tuple[list[float], dict[str, np.ndarray]]:
    base = load_pretrained(folder / "base")
    adapter = open_adapter(folder / "adapter", base)
    config = TrainConfig(
        output="unused",
        steps=STEPS,
        batch_size=2,
        seq_len=9,
        init_from="base",
        optimizer=OptimizerConfig(
            learning_rate=RATE, decay="constant", weight_decay=0.01, clip_norm=0.5, lora=lora
        ),
    )
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        model = model_to_train(config, base)
        steps = make_steps(config, model, mesh)
        drawn = init_state(steps, starting_weights(config, model, mesh))
        flat = {".".join(map(str, path)): x for path, x in _flat(drawn.weights)}
        flat |= {name: jnp.asarray(x) for name, x in adapter.arrays.items()}
        state = init_state(steps, map_parameters(model, lambda name, _: flat[name]))
        assert {name for name in flat if name in adapter.arrays} == {
            ".".join(map(str, path)) for path, _ in _flat(state.params)
        }
        losses = []
        for tokens in BATCHES:
            batch = {"tokens": tokens, "mask": np.ones((2, 9), np.int32)}
            state, metrics = steps.train(state, batch)
            losses.append(float(metrics["loss"]))
    return losses, {".".join(map(str, path)): np.asarray(x) for path, x in _flat(state.params)}


def _flat(tree):
    return nnx.traversals.flatten_mapping(tree).items()


def train_theirs(model: torch.nn.Module) -> list[float]:
    trained = [x for x in model.parameters() if x.requires_grad]
    decayed = [x for x in trained if x.ndim > 1]
    groups = [
        {"params": decayed, "weight_decay": 0.01},
        {"params": [x for x in trained if x.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for tokens in torch.tensor(BATCHES):
        logits = model(tokens[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("case", "dropout"),
    [
        ("llama", 0.0),
        *(
            pytest.param(case, dropout, marks=pytest.mark.exhaustive)
            for case, dropout in [("llama", DROPPED), *((case, 0.0) for case in [*OPTIONS][1:])]
        ),
    ],
)
def test_twenty_steps_are_those_of_peft(case, dropout, tmp_path, monkeypatch):
    # In PEFT gate and up are one parameter, which shares a factor; here they have their own.
    changes = {"target_parameters": ["mlp.experts.down_proj"]} if case == "experts" else {}
    theirs = make_adapter(case, tmp_path, lora_dropout=dropout, **changes)
    lora = LoraConfig(rank=4, alpha=6, dropout=dropout, **OPTIONS[case])
    monkeypatch.setattr(low_rank, "dropout", our_dropout)
    losses, parameters = train_ours(tmp_path, lora)
    if dropout:
        for module in theirs.modules():
            if hasattr(module, "lora_dropout"):
                module.lora_dropout["default"] = Dropout()
    expected = train_theirs(theirs)
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    assert abs(losses[0] - losses[-1]) > 0.01
    theirs.save_pretrained(tmp_path / "trained")
    after = open_adapter(tmp_path / "trained", load_pretrained(tmp_path / "base")).arrays
    assert after.keys() == parameters.keys()
    before = open_adapter(tmp_path / "adapter", load_pretrained(tmp_path / "base")).arrays
    for name, found in parameters.items():
        assert relative_l2(found, after[name]) < 1e-4, name
        assert relative_l2(found, before[name]) > 1e-2, name
