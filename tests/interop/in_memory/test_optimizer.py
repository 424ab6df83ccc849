"""AdamW's state moves in memory in both directions, and either framework continues the run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import source_cases
import torch
import torch_training
from hf_cases import CASES, randomize
from tiers import examples
from tiny import relative_l2
from torch_training import CLIP, RECIPE

from jaxllm.errors import UserError
from jaxllm.interop import CheckpointError, from_torch, load_training_state, to_torch
from jaxllm.interop.families import FAMILIES
from jaxllm.params import map_parameters, named_parameters, split
from jaxllm.train import make_mesh


def bits_of(arrays) -> dict[str, bytes]:
    return {name: np.asarray(array).tobytes() for name, array in arrays.items()}


def equal_states(one: dict, other: dict) -> bool:
    """Whether two state dicts of optimizers have equal groups, and moments with equal bits."""
    skipped = {"param_names", "foreach", "fused"}
    groups = [
        [{k: v for k, v in group.items() if k not in skipped} for group in state["param_groups"]]
        for state in (one, other)
    ]
    return groups[0] == groups[1] and all(
        torch.equal(one["state"][number][what], other["state"][number][what])
        for number in other["state"]
        for what in ("step", "exp_avg", "exp_avg_sq")
    )


def build(name: str):
    if name in CASES:
        return CASES[name].build()
    fields = {"model_type": name, **source_cases.CASES[name]}
    [family] = [family for family in FAMILIES if family.model_type == name]
    return randomize(family.reference(fields))


def trained_case(name: str):
    """A family's module and its AdamW with random moments."""
    module = build(name)
    optimizer = torch_training.adamw(module, named=False)
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return module, optimizer


NAMES = ["phi3", "gpt_neox", "nima-gpt", "mixtral", "gpt2", "gemma2", "tlama", "llm"]


@pytest.mark.parametrize("name", examples(NAMES, "phi3", "gpt_neox", "nima-gpt"))
def test_moments_go_there_and_back(name):
    module, optimizer = trained_case(name)
    model, state = from_torch(module, optimizer=optimizer)
    weights, found = to_torch(model, with_optimizer=state)
    assert equal_states(found, optimizer.state_dict())
    assert list(weights) == list(module.state_dict())
    other = build(name)
    again = torch_training.adamw(other, named=False)
    filled, found = to_torch(model, into=other, with_optimizer=state)
    assert filled is other
    again.load_state_dict(found)
    assert equal_states(again.state_dict(), optimizer.state_dict())


def test_every_form_gives_the_state_of_the_files(trained, tmp_path):
    """The optimizer, its state dict by numbers and by names, with a module and with tensors."""
    module, optimizer, _ = trained
    module.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    _, expected = load_training_state(tmp_path)
    by_name = torch_training.adamw(module)
    by_name.load_state_dict(optimizer.state_dict())
    numbered, weights = optimizer.state_dict(), module.state_dict()
    named = by_name.state_dict()
    assert "param_names" not in numbered["param_groups"][0]
    keyed = {
        "state": {
            name: numbered["state"][number]
            for group in named["param_groups"]
            for name, number in zip(group["param_names"], group["params"], strict=True)
        },
        "param_groups": [
            {**group, "params": group["param_names"]} for group in named["param_groups"]
        ],
    }
    for given, form in [
        (module, optimizer),
        (module, numbered),
        (module, named),
        (module, keyed),
        (weights, numbered),
        (weights, named),
    ]:
        _, state = from_torch(given, config=module.config, optimizer=form)
        for what in ("mu", "nu"):
            assert bits_of(getattr(state, what)) == bits_of(getattr(expected, what))
        plain = dataclasses.replace(state, mu={}, nu={})
        assert plain == dataclasses.replace(expected, mu={}, nu={})


def test_moments_are_placed_like_the_parameters(trained):
    module, optimizer, _ = trained
    mesh = make_mesh(fsdp=2, tensor=2, data=2)
    model, state = from_torch(module, optimizer=optimizer, mesh=mesh)
    for name, variable in named_parameters(model).items():
        for moments in (state.mu, state.nu):
            assert moments[name].sharding == variable.get_value().sharding
    _, found = to_torch(model, with_optimizer=state)
    assert equal_states(found, optimizer.state_dict())


def continue_in_jax(model, state, batches):
    """Takes steps of optax's AdamW from the state on; returns the model, the state and losses."""
    bind, params = split(model)
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.adamw(
            state.learning_rate,
            state.b1,
            state.b2,
            state.eps,
            weight_decay=RECIPE["weight_decay"],
            mask=map_parameters(model, lambda name, _: state.weight_decay[name] > 0),
        ),
    )
    moments = {
        what: map_parameters(model, lambda name, _, of=of: of[name])
        for what, of in (("mu", state.mu), ("nu", state.nu))
    }
    count = jnp.asarray(state.step, jnp.int32)
    inner = optax.tree.set(optimizer.init(params), count=count, **moments)

    @jax.jit
    def step(params, inner, tokens):
        def loss_of(params):
            logits = bind(params)(tokens[:, :-1]).logits
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
            return losses.mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, inner = optimizer.update(gradients, inner, params)
        return optax.apply_updates(params, updates), inner, loss

    losses = []
    for batch in batches:
        params, inner, loss = step(params, inner, jnp.asarray(batch["tokens"]))
        losses.append(float(loss))

    def named(tree):
        return {name: v.get_value() for name, v in named_parameters(bind(tree)).items()}

    after = dataclasses.replace(
        state,
        step=int(optax.tree.get(inner, "count")),
        mu=named(optax.tree.get(inner, "mu")),
        nu=named(optax.tree.get(inner, "nu")),
    )
    return bind(params), after, losses


def test_either_framework_continues_the_run_of_the_other(trained):
    """Two steps in PyTorch, the third in JAX, the fourth in PyTorch again: as four in PyTorch."""
    module, optimizer, batches = trained
    model, state = from_torch(module, optimizer=optimizer)
    expected = list(torch_training.steps(module, optimizer, batches[2:], [3e-3] * 2))
    model, state, (third,) = continue_in_jax(model, state, batches[2:3])
    assert state.step == 3
    weights, found = to_torch(model, with_optimizer=state)
    other = type(module)(module.config)
    other.load_state_dict(weights, strict=True)
    again = torch_training.adamw(other, named=False)
    again.load_state_dict(found)
    (fourth,) = torch_training.steps(other, again, batches[3:], [3e-3])
    np.testing.assert_allclose([third, fourth], expected, rtol=2e-6)
    for (name, ours), theirs in zip(other.named_parameters(), module.parameters(), strict=True):
        assert relative_l2(ours.detach(), theirs.detach()) <= 1e-5, name
    states = [one.state_dict()["state"].values() for one in (again, optimizer)]
    for ours, theirs in zip(*states, strict=True):
        assert ours["step"] == theirs["step"] == 4
        for what in ("exp_avg", "exp_avg_sq"):
            assert relative_l2(ours[what], theirs[what]) <= 1e-4


def test_what_is_not_the_adamw_of_the_model_is_refused(trained, make_llama):
    module, optimizer, _ = trained
    with pytest.raises(UserError, match="optimizer=7 is neither an optimizer of PyTorch nor its"):
        from_torch(module, optimizer=7)
    with pytest.raises(UserError, match="an optimizer knows no names: give the module instead"):
        from_torch(module.state_dict(), config=module.config, optimizer=optimizer)
    strangers = torch_training.adamw(make_llama(), named=False)
    with pytest.raises(CheckpointError, match=r"optimizer:\n  a parameter of shape \(96, 48\) is"):
        from_torch(module, optimizer=strangers)
    fresh = torch_training.adamw(module, named=False)
    with pytest.raises(CheckpointError, match=r"no moments for model\.layers\.\{0\.\.1\}"):
        from_torch(module, optimizer=fresh)
    with pytest.raises(CheckpointError, match="momentum=0 is not an option of AdamW"):
        from_torch(module, optimizer=torch.optim.SGD(module.parameters()))
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = torch.zeros(3, device="meta")
    with pytest.raises(CheckpointError, match=r"optimizer:\n  0.exp_avg is on the meta device"):
        from_torch(module, optimizer=state)
    with pytest.raises(CheckpointError, match="is bfloat16, but resuming a run needs float32"):
        from_torch(make_llama().bfloat16(), optimizer=optimizer)


def test_a_module_stays_as_it_was_if_its_optimizer_is_refused():
    phi, adamw = trained_case("phi3")
    model, state = from_torch(phi, optimizer=adamw)
    uneven = {n: 0.2 if "q_proj" in n else d for n, d in state.weight_decay.items()}
    bad = dataclasses.replace(state, weight_decay=uneven)
    other = CASES["phi3"].build()
    with torch.no_grad():
        other.lm_head.weight.zero_()
    with pytest.raises(CheckpointError, match=r"qkv_proj\.weight holds arrays with different"):
        to_torch(model, into=other, with_optimizer=bad)
    assert not other.lm_head.weight.any()
