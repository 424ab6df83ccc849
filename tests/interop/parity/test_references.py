"""Parity of source systems and encoder-decoders, with all kinds of inputs and outputs."""

import dataclasses
from operator import attrgetter

import encoder_decoder_cases
import jax.numpy as jnp
import numpy as np
import pytest
import source_cases
import torch
from tiers import examples

from jaxllm.interop import load_pretrained
from jaxllm.interop.parity import Inputs, check_checkpoint, compare
from jaxllm.interop.parity.alignment.adapters import adapter_of
from jaxllm.interop.parity.alignment.inputs import draw
from jaxllm.interop.parity.execution import jax_train
from jaxllm.interop.parity.execution.recipe import Recipe
from jaxllm.interop.parity.levels.table import levels_of
from jaxllm.models import build_abstract, with_scanned_layers
from jaxllm.params import named_parameters, with_arrays

SMALL = {
    "t5": {"num_layers": 2, "num_decoder_layers": 1},
    "bart": {"encoder_layers": 2, "decoder_layers": 1},
}
KINDS = [*source_cases.CASES, *SMALL]
FORWARD = ("logits", "layers")
QUICK = ("weights", "config", *FORWARD)
# Kinds for the levels that compile a training step or a decoder; docs/families.md has
# the figures of all levels of all kinds.
SLOW = ("nima-transformer",)
# JAX path of what computes the outputs.
OUTPUTS = {
    "tlama": "lm_head",
    "llm": "lm_head",
    "nima-gpt": "embed.attend",
    "nima-transformer": "decoder.lm_head",
    "components-regression": "output_proj",
    "components-autoregressive": "output_proj",
    "components-autoregressive/experts": "output_proj",
    "components-encoder-decoder": "decoder.output_proj",
    **dict.fromkeys(SMALL, "decoder.embed.attend"),
}


def write(name, folder):
    """Saves a model of this kind and returns it."""
    if name in source_cases.CASES:
        return source_cases.write(name, folder)
    case = encoder_decoder_cases.CASES[name]
    model = dataclasses.replace(case, arguments={**case.arguments, **SMALL[name]}).build()
    model.save_pretrained(folder)
    return model


def drawn(reference, model, num_tokens=40):
    """Draws inputs for the model; the last row is padded where that is possible."""
    adapter = adapter_of(reference)
    masks = adapter.masks(reference)
    inputs = draw(model, masks, num_tokens=num_tokens, batch_size=2, seed=0)
    return inputs.replace_token(adapter.padding_token(reference), model)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Returns a reference, its JAX model and inputs by name. Built once; not to be changed."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name.replace("/", "-"))
            reference = write(name, folder)
            model = load_pretrained(folder, dtype="float32")
            made[name] = reference, model, drawn(reference, model)
        return made[name]

    return get


@pytest.mark.cases(1, exhaustive=4)
@pytest.mark.parametrize("name", examples(KINDS, "nima-gpt"))
def test_every_kind_passes_all_its_levels(kinds, name):
    reference, model, inputs = kinds(name)
    levels = levels_of(model) if name in SLOW else QUICK
    before = {n: tensor.clone() for n, tensor in reference.state_dict().items()}
    report = compare(reference, model, inputs, levels=levels, recipe=Recipe(steps=2))
    assert report.ok, report.first_divergence
    assert report.verdicts == dict.fromkeys(levels, True)
    assert all(report.rows[level] for level in levels)
    assert all(torch.equal(before[n], tensor) for n, tensor in reference.state_dict().items())
    assert all(row.measured <= 1e-4 for row in report.gradients)
    if name in SLOW:
        listed = named_parameters(with_scanned_layers(model, False))
        rows = {f"{row.path}.{row.parameter}" for row in report.gradients}
        assert rows >= listed.keys(), "every parameter has a gradient"
    assert [tap.path for tap in report.taps if tap.is_output] == [OUTPUTS[name]]
    assert callable(attrgetter(OUTPUTS[name])(model))
    paths = {tap.path for tap in report.taps}
    for attention in attentions_of(model):
        # Activations inside attention are recorded for every kind.
        assert {f"{attention}.{part}" for part in ("q", "k", "v", "scores", "mixed")} <= paths


def attentions_of(model):
    """Yields the paths of all attention modules."""
    stacks = {"": model.config}
    if hasattr(model.config, "decoder"):
        stacks = {"encoder.": model.config.encoder, "decoder.": model.config.decoder}
    for prefix, stack in stacks.items():
        for i in range(stack.num_layers):
            yield f"{prefix}layers.{i}.attn"
            if stack.attention.cross:
                yield f"{prefix}layers.{i}.cross_attn"


@pytest.mark.exhaustive
def test_a_source_system_checkpoint_is_checked_by_its_path_alone(tmp_path):
    source_cases.write("nima-transformer", tmp_path)
    report = check_checkpoint(tmp_path, levels=("weights", "config", "logits"))
    assert report.ok, report.first_divergence
    # As many tokens as the model has positions; a quarter of the last row is padding.
    assert (report.batch_size, report.length, report.tokens) == (2, 320, 560)
    assert report.seed == 0


def changed(model, name, function):
    """A bug: one parameter is wrong."""
    arrays = {n: variable.get_value() for n, variable in named_parameters(model).items()}
    return with_arrays(model, {**arrays, name: function(arrays[name])})


def backwards(array):
    return array[..., ::-1]


BUGS = {
    "nima-gpt": ("layers.0:2.mlp_norm.scale", "layers.0.mlp_norm"),
    "nima-transformer": ("decoder.layers.0.cross_attn.v_proj.bias", "decoder.layers.0.cross"),
    "components-regression": ("input_proj.kernel", "input_proj"),
    "components-autoregressive": ("layers.0:2.attn.o_proj.kernel", "layers.0.attn.o_proj"),
    "components-autoregressive/experts": ("layers.0:2.mlp.overflow.up_proj.bias", "layers.0.mlp"),
    "components-encoder-decoder": ("encoder.layers.0:2.mlp.up_proj.bias", "encoder.layers.0.mlp"),
    "t5": ("decoder.position_bias.embedding", "decoder.layers.0.attn.scores"),
}


@pytest.mark.cases(1, exhaustive=3)
@pytest.mark.parametrize("name", examples(BUGS, "nima-gpt"))
def test_a_bug_in_every_kind_is_named_at_its_activation(kinds, name):
    reference, model, inputs = kinds(name)
    parameter, place = BUGS[name]
    report = compare(reference, changed(model, parameter, backwards), inputs, levels=FORWARD)
    assert not report.verdicts["logits"]
    assert report.first_divergence.path.startswith(place)


@pytest.mark.cases(0, exhaustive=2)
@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("tlama", "lm_head.kernel"),
        ("nima-transformer", "decoder.lm_head.kernel"),
        ("bart", "decoder.head_bias"),
        ("components-encoder-decoder", "decoder.output_proj.bias"),
    ],
)
@pytest.mark.exhaustive
def test_a_bug_in_the_output_module_is_named_by_its_path(kinds, name, parameter):
    reference, model, inputs = kinds(name)
    report = compare(reference, changed(model, parameter, backwards), inputs, levels=FORWARD)
    assert report.verdicts == {"logits": False, "layers": True}
    assert report.first_divergence.path == OUTPUTS[name]


@pytest.mark.exhaustive
def test_tokens_at_padding_do_not_affect_the_figures(kinds):
    reference, model, inputs = kinds("bart")
    other = np.where(inputs.target_mask == 1, inputs.target, 17)
    one, same = (
        compare(reference, model, given, levels=("logits",))
        for given in (inputs, dataclasses.replace(inputs, target=other))
    )
    assert one.tokens == same.tokens == inputs.target_mask.sum() < inputs.target.size
    assert one.logits == same.logits
    assert sum(bucket.tokens for bucket in one.buckets) == one.tokens


@pytest.mark.exhaustive
def test_a_model_that_attends_to_source_padding_fails(kinds):
    reference, model, inputs = kinds("nima-transformer")
    blind = type("Blind", (type(model),), {"__call__": without_segments(type(model).__call__)})
    seeing = with_arrays(build_abstract(model.config), arrays_of(model))
    seeing.__class__ = blind
    report = compare(reference, seeing, inputs, levels=("logits",))
    assert not report.ok


def without_segments(call):
    return lambda self, *sequences, **_: call(self, *sequences)


def arrays_of(model):
    return {name: variable.get_value() for name, variable in named_parameters(model).items()}


@pytest.mark.exhaustive
def test_a_loss_that_counts_padding_is_caught_by_the_gradients(kinds, monkeypatch):
    reference, model, inputs = kinds("nima-transformer")
    original = jax_train.mean_loss

    def of_all(params, bind, given):
        shown = {**given, "target_mask": jnp.ones_like(given["target_mask"])}
        return original(params, bind, shown)

    monkeypatch.setattr(jax_train, "mean_loss", of_all)
    report = compare(reference, model, inputs, levels=("gradients",))
    assert not report.ok


@pytest.mark.exhaustive
def test_a_wrong_start_token_is_caught(kinds):
    reference, model, inputs = kinds("t5")
    config = dataclasses.replace(model.config, start_token=6)
    other = with_arrays(build_abstract(config), arrays_of(model))
    report = compare(reference, other, inputs, levels=("config", "generate"))
    assert report.verdicts == {"config": False, "generate": False}
    assert report.first_divergence.path == "config.start_token"


def test_invalid_inputs_are_rejected_with_every_problem(kinds):
    reference, model, inputs = kinds("components-encoder-decoder")
    wrong = Inputs(inputs.target[..., :3], inputs.source.astype(np.float64))
    with pytest.raises(ValueError, match=r"source is float64.*; target is float32\(2, 40, 3\)"):
        compare(reference, model, wrong, levels=("logits",))
    with pytest.raises(ValueError, match="source is missing"):
        compare(reference, model, inputs.target, levels=("logits",))
    hidden = dataclasses.replace(inputs, source_mask=np.eye(2, inputs.source.shape[1]))
    with pytest.raises(ValueError, match="source_mask hides tokens that the reference, which"):
        compare(reference, model, hidden, levels=("logits",))
    with pytest.raises(ValueError, match="a Linear, which is neither a model of transformers"):
        compare(torch.nn.Linear(2, 2), model, inputs, levels=("logits",))
    reference, model, inputs = kinds("nima-transformer")
    padding = dataclasses.replace(inputs, source=np.full_like(inputs.source, 3))
    with pytest.raises(ValueError, match="token 3, which this model reserves for padding"):
        compare(reference, model, padding, levels=("logits",))


def test_a_regression_model_has_no_generate_level(kinds):
    reference, model, inputs = kinds("components-regression")
    with pytest.raises(ValueError, match=r"levels=.* choose at least one of weights"):
        compare(reference, model, inputs, levels=("generate",))
