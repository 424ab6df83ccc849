"""The components' models over vectors against the reference: every attention, with experts."""

import copy
import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hf_cases import randomize
from tiny import random_model, relative_l2

from jaxllm.config import LayerKind
from jaxllm.generation import beam_search, generate
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.reference import components
from jaxllm.interop.reference.components.feed_forward import FFNConfig
from jaxllm.models import with_scanned_layers, with_window
from jaxllm.params import named_parameters, split
from jaxllm.train import make_mesh

TOLERANCE = 1e-5  # relative L2, float32
LAYERS = {
    **{"input_dim": 3, "output_dim": 5, "embed_dim": 48, "ffn_latent_dim": 56, "num_heads": 6},
    "max_seq_len": 160,
}
ONE, TWO = {"num_layers": 3}, {"num_encoder_layers": 3, "num_decoder_layers": 2}
MODELS = {
    "components-regression": (ONE, components.TransformerModel),
    "components-autoregressive": (ONE, components.AutoregressiveTransformerModel),
    "components-encoder-decoder": (TWO, components.EncoderDecoder),
}
DENSE = {"embed_dim": 48, "latent_dim": 56}
MOE = {**DENSE, "use_moe": True, "num_experts": 4, "alpha": 0.3}
ROOMY = 2 * 160  # a capacity that is never exceeded
CASES = [
    {},
    {"attention_type": "mqa", "ffn_config": {**DENSE, "use_moe": False}},
    {"attention_type": "gqa", "use_kv_cache": False},
    {"attention_type": "gqa", "num_groups": 2, "apply_causal_mask": False},
    {"attention_type": "gqa", "num_groups": 1, "apply_causal_mask": True},
    {"ffn_config": {**MOE, "capacity": 20, "topk": 1}},
    {"attention_type": "gqa", "ffn_config": {**MOE, "capacity": ROOMY, "topk": 1}},
    {"attention_type": "mqa", "ffn_config": {**MOE, "capacity": 55, "topk": 2}},
    {"attention_type": "gqa", "ffn_config": {**MOE, "capacity": ROOMY, "topk": 2}},
]


def build(kind: str, switches: dict) -> tuple[torch.nn.Module, dict]:
    """Builds the reference with random parameters; returns it with its arguments."""
    sizes, make = MODELS[kind]
    arguments = {**LAYERS, **sizes, **switches}
    given = dict(arguments)
    if "ffn_config" in given:
        given["ffn_config"] = FFNConfig(**given["ffn_config"])
    return randomize(make(**given)).eval(), {"model_type": kind, **arguments}


def write(folder: Path, arguments: dict, reference: torch.nn.Module) -> Path:
    """Saves a model as the original code does."""
    torch.save(reference.state_dict(), folder / "state_dict.pth")
    (folder / "config.json").write_text(json.dumps(arguments))
    return folder


@pytest.fixture(
    scope="module",
    params=[
        *(("components-autoregressive", i) for i in range(len(CASES))),
        # The other two models have the same layers.
        *(("components-regression", i) for i in (0, 3, 5)),
        *(("components-encoder-decoder", i) for i in (1, 4, 7)),
    ],
    ids=lambda param: f"{param[0].removeprefix('components-')}-{param[1]}",
)
def case(request, tmp_path_factory):
    """The reference, its folder and its arguments."""
    kind, i = request.param
    reference, arguments = build(kind, CASES[i])
    return reference, write(tmp_path_factory.mktemp("original"), arguments, reference), arguments


def inputs_of(arguments: dict) -> list[np.ndarray]:
    """Returns a sequence, or a source and a target."""
    lengths = (160, 150) if "num_encoder_layers" in arguments else (160,)
    rng = np.random.default_rng(1)
    return [rng.standard_normal((2, length, 3)).astype(np.float32) for length in lengths]


@jax.jit
def run(model, *inputs):
    out = model(*inputs)
    return out.logits, out.aux_loss


def test_outputs_and_aux_loss_equal_the_reference(case):
    reference, folder, arguments = case
    inputs = inputs_of(arguments)
    with torch.no_grad():
        expected = reference(*map(torch.tensor, inputs)).numpy()
    out, loss = run(load_pretrained(folder), *inputs)
    assert relative_l2(out, expected) <= TOLERANCE
    assert float(loss) == pytest.approx(float(reference.aux_loss), rel=TOLERANCE)
    assert (float(loss) > 0) == arguments.get("ffn_config", {}).get("use_moe", False)


def test_gradients_equal_the_reference(case, tmp_path):
    """Gradients are mapped by the rules like weights; the reference computes them in float64."""
    reference, folder, arguments = case
    inputs = inputs_of(arguments)
    exact = copy.deepcopy(reference).double()
    out = exact(*(torch.tensor(x).double() for x in inputs))
    weights = np.random.default_rng(2).standard_normal(out.shape)
    ((out * torch.tensor(weights)).sum() + 100 * exact.aux_loss).backward()
    with torch.no_grad():
        for parameter in exact.parameters():
            given = parameter.grad
            parameter.copy_(torch.zeros_like(parameter) if given is None else given)
    gradients = load_pretrained(write(tmp_path, arguments, exact.float()))
    expected = arrays_of(gradients)
    bind, params = split(load_pretrained(folder))

    def loss(params):
        out = bind(params)(*inputs)
        return (out.logits * weights).sum() + 100 * out.aux_loss

    found = arrays_of(bind(jax.jit(jax.grad(loss))(params)))
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        error = np.linalg.norm(gradient - expected[name])
        # A key bias adds the same to all scores of a query: its gradient is only rounding.
        like = name.replace("k_proj.bias", "q_proj.bias")
        if arguments.get("ffn_config", {}).get("topk") == 1:
            # A single chosen expert has weight one whatever the router: only rounding as well.
            like = like.replace("router", "up_proj")
        scale = expected[like]
        assert error <= TOLERANCE * np.linalg.norm(scale), name


def arrays_of(model) -> dict[str, np.ndarray]:
    return {name: np.asarray(v.get_value()) for name, v in named_parameters(model).items()}


def test_the_round_trip_is_bit_exact(case, tmp_path):
    _, folder, arguments = case
    save_pretrained(load_pretrained(folder), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert arguments.items() <= {**written, "ffn_config": arguments.get("ffn_config")}.items()
    assert arguments.get("ffn_config", {}).items() <= written["ffn_config"].items()
    theirs, ours = (
        torch.load(path / "state_dict.pth", weights_only=True)
        for path in (folder, tmp_path / "out")
    )
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        if name.endswith("pe.pe"):
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-5)  # angles up to 159
        else:
            assert torch.equal(ours[name], tensor), name


def test_the_config_is_written_without_an_origin(case, tmp_path):
    _, folder, _ = case
    model = load_pretrained(folder)
    model.origin = None
    save_pretrained(model, tmp_path / "out", format="components")
    assert load_pretrained(tmp_path / "out").config == model.config


@pytest.mark.parametrize("kind", MODELS)
def test_models_are_saved_as_native_checkpoints(kind, tmp_path):
    reference, arguments = build(kind, CASES[-2])
    model = load_pretrained(write(tmp_path, arguments, reference))
    save_pretrained(model, tmp_path / "native", format="native")
    again = load_pretrained(tmp_path / "native")
    assert again.config == model.config
    assert again.origin == model.origin
    for name, array in arrays_of(again).items():
        np.testing.assert_array_equal(array, arrays_of(model)[name])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.usefixtures("really_compiling")
@pytest.mark.parametrize("axes", [{"fsdp": 4, "tensor": 2}, {"expert": 2, "data": 4}], ids=str)
def test_outputs_are_the_same_on_a_mesh_and_with_unscanned_layers(kind, axes, tmp_path):
    reference, arguments = build(kind, CASES[-2])
    folder, inputs = write(tmp_path, arguments, reference), inputs_of(arguments)
    model, mesh = load_pretrained(folder), make_mesh(**axes)
    expected = run(model, *inputs)
    sharded = load_pretrained(folder, mesh=mesh)
    if "expert" in axes:
        kernel = next(v for name, v in named_parameters(sharded).items() if "mlp.up_proj.k" in name)
        assert "expert" in kernel.get_value().sharding.spec
    with jax.set_mesh(mesh):
        found = run(sharded, *inputs)
    for out in (found, run(with_scanned_layers(model, False), *inputs)):
        assert relative_l2(out[0], expected[0]) <= TOLERANCE
        assert float(out[1]) == pytest.approx(float(expected[1]), rel=TOLERANCE)


def loaded(folder: Path, kind: str = "components-autoregressive", **switches):
    reference, arguments = build(kind, switches)
    return reference, load_pretrained(write(folder, arguments, reference))


@pytest.mark.parametrize("attention", ["mha", "mqa", "gqa"])
def test_a_sliding_window_equals_the_reference(attention, tmp_path):
    """The reference's `expanding_context=False`, whose window is as long as its positions."""
    reference, model = loaded(tmp_path, attention_type=attention, max_seq_len=16)
    x = np.random.default_rng(1).standard_normal((2, 50, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(x), expanding_context=False).numpy()
    found, _ = run(with_window(model, 16), x)
    assert relative_l2(found, expected) <= TOLERANCE


def test_the_next_token_equals_the_reference(tmp_path):
    reference, model = loaded(tmp_path)
    x = np.random.default_rng(1).standard_normal((2, 9, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference.generate_next_token(torch.tensor(x)).numpy()
    assert expected.shape == (2, 1, 5)
    assert relative_l2(model.generate_next_token(x), expected) <= TOLERANCE
    padded = np.concatenate([x, np.full((2, 4, 3), 7, np.float32)], axis=1)
    segment_ids = (np.arange(13) < 9)[None].repeat(2, 0).astype(np.int32)
    found = model.generate_next_token(padded, segment_ids=jnp.asarray(segment_ids))
    assert relative_l2(found, expected) <= TOLERANCE


@pytest.mark.parametrize(
    ("switches", "complaint"),
    [
        ({"attention_type": "mla"}, "attention_type='mla' is not supported, only 'mha' or 'mqa'"),
        ({"num_heads": 5}, "embed_dim=48 is not a multiple of num_heads=5"),
        (
            {"attention_type": "gqa", "num_groups": 4},
            "num_heads=6 is not a multiple of num_groups=4",
        ),
        ({"num_groups": 6, "max_seq_len": None}, "max_seq_len is missing"),
        ({"ffn_config": {**DENSE, "latent_dim": 57}}, "latent_dim=57, but the model has 56"),
        ({"ffn_config": {**MOE, "capacity": 3, "topk": 5}}, "top_k=5 is above num_experts=4"),
        ({"ffn_config": {**MOE, "capacity": 0}}, "capacity=0 is less than 1"),
        ({"ffn_config": MOE}, "capacity is missing"),
        ({"use_cache": True}, "did you mean 'use_kv_cache'"),
        ({"ffn_config": {**MOE, "capacity": 3, "top_k": 2}}, "did you mean 'topk'"),
    ],
)
def test_invalid_arguments_are_refused(switches, complaint, tmp_path):
    reference, arguments = build("components-autoregressive", {})
    with pytest.raises(CheckpointError, match=complaint):
        load_pretrained(write(tmp_path, {**arguments, **switches}, reference))


def test_unsupported_configs_are_refused(tmp_path):
    with pytest.raises(CheckpointError) as error:
        save_pretrained(random_model(), tmp_path / "out", format="components")
    assert "components-regression: this family supports SequenceConfig" in str(error.value)
    _, model = loaded(tmp_path)
    slid = with_window(model, 16)
    assert slid.config.pattern == (LayerKind(sees="window"),)
    with pytest.raises(CheckpointError, match=r"autoregressive' does not support .*window=16"):
        save_pretrained(slid, tmp_path / "out")


def test_models_over_vectors_do_not_generate_text(tmp_path):
    _, model = loaded(tmp_path)
    for search in (generate, partial(beam_search, num_beams=2)):
        with pytest.raises(ValueError, match="a SequenceModel has no vocabulary"):
            search(model, [[1]], 3)
