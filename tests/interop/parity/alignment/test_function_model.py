"""JAX functions beside PyTorch modules: all levels pass, and each finds a mistake of its kind."""

import dataclasses
from types import SimpleNamespace

import any_models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiers import examples

from jaxllm.errors import CheckpointError, UserError
from jaxllm.interop import Rule, load_into
from jaxllm.interop.parity import Inputs, JaxFunction, Recipe, compare, tap
from jaxllm.interop.parity.alignment.function_model import FunctionModel
from jaxllm.interop.parity.levels.table import levels_of
from jaxllm.params import named_parameters, stacked_layers

VOCAB, WIDTH, DEPTH = 23, 16, 2
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 24))
LEVELS = ("weights", "logits", "layers", "gradients", "step", "curve")


class Net(torch.nn.Module):
    """A module of no known family: residual layers that see all earlier positions alike."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.nn.Embedding(VOCAB, WIDTH)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)])
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
        self.register_buffer("scale", torch.full((WIDTH,), 1.25))
        self.out = torch.nn.Linear(WIDTH, VOCAB, bias=False)
        self.out.weight = self.table.weight

    def forward(self, tokens):
        x = self.table(tokens) * self.scale
        steps = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        for block in self.blocks:
            x = x + torch.tanh(block(x.cumsum(1) / steps))
        return self.out(x)


def params_of(module):
    state = {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}
    layers = [
        {"w": state[f"blocks.{i}.weight"].T, "b": state[f"blocks.{i}.bias"]} for i in range(DEPTH)
    ]
    found = {"table": state["table.weight"], "layers": layers, "scale": state["scale"]}
    return jax.tree.map(jnp.asarray, found) | {"depth": DEPTH}


@dataclasses.dataclass(frozen=True)
class Bug:
    """Mistakes of a function: what it multiplies."""

    layer: float = 1.0  # the output of the last layer, inside the residual
    gradient: bool = False  # whether the first layer gets no gradient


def function(bug=Bug(), **changes):
    def apply(params, tokens_BT):
        x_BTD = params["table"][tokens_BT] * params["scale"]
        steps = jnp.arange(1, x_BTD.shape[1] + 1)[:, None]
        for i, layer in enumerate(params["layers"]):
            y_BTD = (jnp.cumsum(x_BTD, 1) / steps) @ layer["w"] + layer["b"]
            factor = bug.layer if i == params["depth"] - 1 else 1.0
            y_BTD = tap(f"layers.{i}.linear", factor * y_BTD)
            if bug.gradient and i == 0:
                y_BTD = jax.lax.stop_gradient(y_BTD)
            x_BTD = x_BTD + jnp.tanh(y_BTD)
        return x_BTD @ params["table"].T

    given = {"apply": apply, "params": params_of(Net()), "rules": RULES, "taps": TAPS}
    return JaxFunction(**{**given, **changes})


RULES = SimpleNamespace(
    rules=[
        Rule("table.weight : V D", "table : V D"),
        Rule("blocks.{L}.weight : E D", "layers.{L}.w : D E"),
        Rule("blocks.{L}.bias : E", "layers.{L}.b : E"),
        Rule("scale : D", "scale : D"),
    ],
    tied={"out.weight": "table.weight"},
)
TAPS = [Rule("blocks.{L} : B T E", "layers.{L}.linear : B T E")]


def report(given, module=None, **options):
    options = {"recipe": Recipe(steps=2), **options}
    return compare(module or Net(), given, TOKENS, **options)


def test_a_function_passes_all_its_levels(tmp_path):
    module = Net()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = report(function(), module)
    assert found.verdicts == dict.fromkeys(LEVELS, True), found.first_divergence
    assert [row.path for row in found.taps] == [
        *("layers.0.linear", "layers.1.linear", "logits"),
    ]
    assert all(row.forced is not None for row in found.taps)
    assert {row.verdict for row in found.taps} == {"equal within rounding"}
    rows = {f"{row.path}.{row.parameter}".lstrip(".") for row in found.gradients}
    assert rows >= {"table", "layers.0.w", "layers.0.b", "layers.1.w", "layers.1.b"}
    assert "scale" not in rows  # a buffer is not trained
    assert all(torch.equal(before[n], x) for n, x in module.state_dict().items())
    assert not hasattr(module, "jaxllm_own")
    found.write_html(tmp_path / "report.html")
    assert "layers.1.linear" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("bug", "levels", "broken", "first"),
    [
        (Bug(layer=1.001), ["layers", "logits"], {"layers", "logits"}, "layers.1.linear"),
        (Bug(gradient=True), ["logits", "gradients"], {"gradients"}, "layers.0"),
    ],
)
def test_each_level_finds_its_mistake(bug, levels, broken, first):
    found = report(function(bug), levels=levels)
    assert {level for level, ok in found.verdicts.items() if not ok} == broken
    assert found.first_divergence.path == first


def test_a_hidden_mistake_is_told_from_those_that_inherit_it():
    found = report(function(Bug(layer=1.001)), levels=["layers"])
    wrong = [row.path for row in found.taps if row.is_wrong_itself]
    assert wrong == ["layers.1.linear"]
    assert "scal" in found.first_divergence.hint.lower()


def test_a_flipped_bit_of_a_weight_is_found():
    params = params_of(Net())
    bits = np.asarray(params["layers"][1]["w"]).copy()
    bits.view(np.uint32)[3, 5] ^= 1
    params["layers"][1]["w"] = jnp.asarray(bits)
    found = report(function(params=params), levels=["weights"])
    assert [row.differing_bits for row in found.weights if not row.ok] == [1]
    assert found.first_divergence.path == "layers.1"


def test_a_tied_copy_that_differs_is_found():
    module = Net()
    module.out.weight = torch.nn.Parameter(module.table.weight.detach() * 2)
    found = report(function(), module, levels=["weights"])
    assert found.first_divergence.remark == "should be a copy of table.weight"


def test_without_taps_activations_are_no_level():
    model = FunctionModel(function(taps=()), Net(), TOKENS)
    assert levels_of(model) == tuple(level for level in LEVELS if level != "layers")
    message = "choose at least one of weights, logits, gradients, step, curve; layers needs taps"
    with pytest.raises(UserError, match=message):
        report(function(taps=()), levels=["layers"])


def test_padding_is_not_compared():
    mask = np.ones_like(TOKENS)
    mask[1, 9:] = 0
    module = Net()
    module.forward = lambda tokens, forward=module.forward: forward(tokens) + 0.0
    inputs = Inputs(TOKENS, target_mask=mask)
    found = compare(module, function(), inputs, levels=["logits", "layers"])
    assert found.ok
    assert found.tokens == 24 + 9


def test_the_parameters_may_be_spread_over_a_mesh():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, PartitionSpec(None, "x"))
    params = params_of(Net())
    for layer in params["layers"]:
        layer["w"] = jax.device_put(layer["w"], split)
    levels = ["weights", "logits", "layers", "gradients"]
    assert report(function(params=params), levels=levels).ok


def test_arguments_of_the_rules_call_the_module():
    module = Net()
    module.forward = lambda scale, tokens, forward=module.forward: scale * forward(tokens)
    rules = SimpleNamespace(**vars(RULES), arguments=lambda model, given: (1.0, given["target"]))
    assert report(function(rules=rules), module, levels=["logits"]).ok


def test_the_model_has_the_leaves_as_parameters():
    model = FunctionModel(function(), Net(), TOKENS)
    names = {"table", "scale", *(f"layers.{i}.{x}" for i in range(DEPTH) for x in "wb")}
    assert named_parameters(model).keys() == names
    assert stacked_layers(model) == {"layers": {"0": range(1), "1": range(1, 2)}}
    assert model.parts.decayed == {"table", "layers.0.w", "layers.1.w"}
    assert model.config.vocab_size == VOCAB
    assert model.restacked(False) is model


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"rules": RULES.rules[1:]}, CheckpointError, "no rule covers table of the model"),
        (
            {"params": {**params_of(Net()), "ids": jnp.arange(3)}, "rules": RULES},
            CheckpointError,
            "ids is int32, which is not trained: name it in kept",
        ),
        (
            {"params": {**params_of(Net()), "scale": jnp.ones(WIDTH, jnp.bfloat16)}},
            UserError,
            "the model computes in dtype='bfloat16', the reference in float32",
        ),
        ({"apply": lambda params, tokens: tokens}, UserError, "it must return logits"),
        (
            {"params": {**params_of(Net()), "config": jnp.ones(2), "hook": jnp.ones(2)}},
            CheckpointError,
            "config is a reserved name: put the parameters into a dict",
        ),
        ({"taps": [Rule("out : B T Q", "out : B T Q")]}, UserError, "Q has no size"),
        (
            {"taps": [Rule("out : B T V", "logits : B T V")]},
            UserError,
            "logits are always compared",
        ),
        ({"taps": [Rule("out : B T V", "no : B T V")]}, UserError, "no activation at no"),
        ({"taps": [Rule("no : B T V", "layers.0.linear : B T V")]}, UserError, "has no no"),
    ],
)
def test_what_does_not_fit_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        report(function(**changes), levels=["logits", "layers"])


def test_only_tokens_are_taken():
    vectors = np.zeros((2, 5, 3), np.float32)
    with pytest.raises(UserError, match=r"takes tokens \(B, T\), but the inputs are \(2, 5, 3\)"):
        compare(Net(), function(), vectors)
    with pytest.raises(UserError, match="source is given, which a FunctionModel does not take"):
        compare(Net(), function(), Inputs(TOKENS, source=TOKENS))


def test_rules_are_given_once():
    with pytest.raises(UserError, match="a JaxFunction has rules of its own"):
        report(function(), rules=RULES)


PAGE = {"equinox": any_models.equinox_llama, "linen": any_models.linen_llama}
LLAMA_TAPS = [Rule("model.layers.{L} : B T D", "layers.{L} : B T D")]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", examples(PAGE, "linen"))
def test_the_models_of_the_page_equal_transformers(name):
    module = any_models.torch_llama()
    shapes, apply, rules = PAGE[name]()
    params = load_into(shapes, module.state_dict(), rules)
    given = JaxFunction(apply, params, rules, LLAMA_TAPS)
    levels = ["weights", "logits", "layers"]
    found = compare(module, given, any_models.tokens(2, 40), levels=levels)
    assert found.ok, found.first_divergence
    assert [row.path for row in found.taps] == [*(f"layers.{i}" for i in range(3)), "logits"]
