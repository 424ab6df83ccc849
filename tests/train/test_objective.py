"""Training objectives: the loss and gradient of every kind of model match PyTorch's losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from kinds import CONFIGS, B, batch_of
from tiers import examples
from tiny import random_of, relative_l2

from jaxllm.config import with_fields
from jaxllm.params import split
from jaxllm.train.loss import LossConfig
from jaxllm.train.objective import get_objective

TOLERANCE = 1e-5  # relative, float32


def output(model, kind: str, batch: dict):
    """The outputs of the model's public call; row by row where rows could be mixed up."""
    if kind == "sees images":
        rows = [
            model(
                tokens[None], image_embedding=model.embed_images(image[None], tokens[None])
            ).logits
            for tokens, image in zip(batch["tokens"][:, :-1], batch["images"], strict=True)
        ]
        return jnp.concatenate(rows)
    if kind == "encoder-decoder":  # without any padding
        lengths = batch["source_mask"].sum(axis=1)
        rows = [
            model(source[None, :length], tokens[None]).logits
            for source, length, tokens in zip(
                batch["source"], lengths, batch["tokens"][:, :-1], strict=True
            )
        ]
        return jnp.concatenate(rows)
    if kind == "vectors given vectors":
        zeros = np.zeros((B, 1, 5), np.float32)
        before = np.concatenate([zeros, batch["targets"][:, :-1]], axis=1)
        return model(batch["inputs"], before).logits
    return model(batch["inputs"]).logits


def torch_loss(out, batch: dict) -> tuple[float, np.ndarray]:
    """PyTorch's loss summed over targets that count, and its gradient by the model's output."""
    given = torch.tensor(np.asarray(out), requires_grad=True)
    mask = torch.tensor(batch["mask"]).float()
    if "tokens" in batch:
        targets = torch.tensor(batch["tokens"][:, 1:]).flatten()
        each = torch.nn.functional.cross_entropy(given.flatten(0, 1), targets, reduction="none")
        each = each.view(mask.shape)
    else:
        each = torch.nn.functional.mse_loss(
            given, torch.tensor(batch["targets"]), reduction="none"
        ).mean(-1)
    total = (each * mask).sum()
    total.backward()
    return total.item(), given.grad.numpy()


@pytest.mark.cases(1, exhaustive=2)
@pytest.mark.parametrize("kind", examples(CONFIGS, "each vector"))
def test_loss_and_gradient_match_torch(kind):
    """PyTorch's gradient by the output is backpropagated to the parameters with `jax.vjp`."""
    model, batch = random_of(CONFIGS[kind]), batch_of(kind)
    bind, params = split(model)
    out, pull = jax.vjp(jax.jit(lambda params: output(bind(params), kind, batch)), params)
    total, gradient = torch_loss(out, batch)
    loss = get_objective(model).loss

    @jax.jit
    def both(params):
        return jax.value_and_grad(lambda p: loss(bind(p), batch, LossConfig(chunk_tokens=4))[0])(
            params
        )

    found, ours = both(params)
    assert float(found) == pytest.approx(total, rel=TOLERANCE)
    (theirs,) = pull(jnp.asarray(gradient))
    one, other = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (ours, theirs))
    assert relative_l2(one, other) < TOLERANCE


@pytest.mark.parametrize("kind", CONFIGS)
def test_masked_targets_do_not_count_and_experts_report_their_load(kind):
    model, batch = random_of(CONFIGS[kind]), batch_of(kind)
    both = jax.jit(
        lambda batch: get_objective(model).loss(model, batch, LossConfig(chunk_tokens=512))
    )
    loss = lambda batch: both(batch)[0]  # noqa: E731
    fullest = both(batch)[1].fullest
    assert 1 < fullest <= 4 if kind == "each vector" else fullest is None
    parts = [
        {
            **batch,
            "mask": batch["mask"]
            & (np.arange(B) % 2 == i).reshape(-1, *(1,) * (batch["mask"].ndim - 1)),
        }
        for i in range(2)
    ]
    total = float(loss(batch))
    assert total > 1
    assert sum(float(loss(part)) for part in parts) == pytest.approx(total, rel=TOLERANCE)
    assert float(loss({**batch, "mask": np.zeros_like(batch["mask"])})) == 0


@pytest.mark.exhaustive
def test_experts_add_an_auxiliary_loss_in_each_stack():
    config = CONFIGS["each vector"]
    sparse = {"pattern": config.pattern, "experts": config.experts}
    for kind in ("each vector", "vectors given vectors"):
        model = random_of(with_fields(CONFIGS[kind], **sparse))
        batch = batch_of(kind)
        losses = {}
        for weight in (0.0, 0.3, 0.6):
            experts = dataclasses.replace(config.experts, aux_weight=weight)
            changed = random_of(with_fields(CONFIGS[kind], **sparse | {"experts": experts}))
            losses[weight] = jax.jit(get_objective(model).loss, static_argnums=2)(
                changed, batch, LossConfig(chunk_tokens=4)
            )
        assert float(losses[0.0][1].aux_loss) == 0 < float(losses[0.3][1].aux_loss)
        assert float(losses[0.6][1].aux_loss) == pytest.approx(2 * float(losses[0.3][1].aux_loss))
        assert float(losses[0.0][0]) == float(losses[0.3][0])
        assert 1 < float(losses[0.3][1].fullest) <= 4


def test_source_padding_has_no_effect():
    model, batch = random_of(CONFIGS["encoder-decoder"]), batch_of("encoder-decoder")
    loss = jax.jit(
        lambda batch: get_objective(model).loss(model, batch, LossConfig(chunk_tokens=512))[0]
    )
    other = np.where(batch["source_mask"], batch["source"], 7)
    assert float(loss({**batch, "source": other})) == float(loss(batch))
    read = {**batch, "source_mask": np.ones_like(batch["source_mask"])}
    assert float(loss(read)) != pytest.approx(float(loss(batch)), rel=1e-4)


def test_an_image_affects_only_its_own_row():
    """The images of other rows do not change its loss."""
    model, batch = random_of(CONFIGS["sees images"]), batch_of("sees images")
    loss = jax.jit(
        lambda batch: get_objective(model).loss(model, batch, LossConfig(chunk_tokens=512))[0]
    )
    first = {**batch, "mask": batch["mask"] & (np.arange(B) == 0)[:, None]}
    images = np.array(batch["images"])
    images[1:] += 1
    assert float(loss({**first, "images": images})) == pytest.approx(float(loss(first)), rel=1e-6)
    images[0] += 1
    assert float(loss({**first, "images": images})) != pytest.approx(float(loss(first)), rel=1e-4)
