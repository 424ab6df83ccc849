"""nima's models, with every switch that they share with the JAX models, against the reference."""

import copy
import json
from itertools import count
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from hf_cases import randomize
from tiny import random_model, relative_l2

from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.reference import nima
from jaxllm.params import named_parameters, split

TOLERANCE = 1e-5  # relative L2 of logits, float32
LAYERS = {"d_model": 48, "n_heads": 6, "d_ff": 56, "max_seq_len": 320}
GPT = {"vocab_size": 96, "n_layers": 3, **LAYERS}
TRANSFORMER = {
    "src_vocab_size": 96,
    "tgt_vocab_size": 80,
    "n_encoder_layers": 3,
    "n_decoder_layers": 2,
    **LAYERS,
}
MODELS = {
    "nima-gpt": (GPT, nima.GPTModel),
    "nima-transformer": (TRANSFORMER, nima.TransformerModel),
}
# Every value of every switch, and every position with either norm.
SWITCHES = [
    {},
    {"norm": "pre", "feed_forward": "swiglu", "position": "rope"},
    {"feed_forward": "glu", "position": "alibi"},
    {"position": "relative"},
    {"norm": "pre", "feed_forward": "glu", "position": "relative", "dropout": 0.0},
    {"norm": "pre", "position": "alibi", "init": "normal"},
    {"feed_forward": "swiglu", "position": "rope", "dropout": 0.3},
    {"norm": "pre"},
]
CASES = {
    "nima-gpt": [
        *SWITCHES,
        {"norm": "pre", "position": "sinusoidal"},
        {"position": "sinusoidal", "tie_weights": False},
    ],
    "nima-transformer": [
        *SWITCHES,
        {"norm": "pre", "position": "learned"},
        {"position": "learned", "feed_forward": "glu"},
        {"tie_weights": True, "pad_idx": 3},
    ],
}


def name_of(param: tuple[str, int]) -> str:
    kind, i = param
    return "-".join([kind, *map(str, CASES[kind][i].values())])


@pytest.fixture(
    scope="module",
    params=[(kind, i) for kind in CASES for i in range(len(CASES[kind]))],
    ids=name_of,
)
def case(request, tmp_path_factory):
    """The reference, its folder and its arguments."""
    kind, i = request.param
    sizes, build = MODELS[kind]
    arguments = {**sizes, **CASES[kind][i]}
    reference = randomize(build(**arguments)).eval()
    arguments = {"model_type": kind, **arguments}
    return reference, write(tmp_path_factory.mktemp("original"), arguments, reference), arguments


def write(folder: Path, arguments: dict, reference: torch.nn.Module) -> Path:
    """Saves a model as nima does."""
    torch.save(reference.state_dict(), folder / "state_dict.pth")
    (folder / "config.json").write_text(json.dumps(arguments))
    return folder


def inputs_of(arguments: dict, seed: int = 1) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Returns tokens, and the segment ids that mark the padding of the source."""
    rng = np.random.default_rng(seed)
    if arguments["model_type"] == "nima-gpt":
        return [rng.integers(0, 96, (2, 320))], {}
    src, pad = rng.integers(4, 96, (2, 320)), arguments.get("pad_idx", 0)
    src[0, 200:] = pad
    return [src, rng.integers(0, 80, (2, 300))], {"src_segment_ids": src != pad}


def test_logits_equal_the_reference(case):
    reference, folder, arguments = case
    inputs, masks = inputs_of(arguments)
    with torch.no_grad():
        expected = reference(*map(torch.tensor, inputs)).numpy()
    run = jax.jit(lambda model, *inputs: model(*inputs, **masks).logits)
    assert relative_l2(run(load_pretrained(folder), *inputs), expected) <= TOLERANCE


def is_smooth(exact: torch.nn.Module, inputs: list[np.ndarray]) -> bool:
    """Whether no input of a ReLU is so close to 0 that rounding decides its gradient."""
    found = []
    for name, module in exact.named_modules():
        if name.endswith("linear1"):
            module.register_forward_hook(lambda _, __, x: found.append(x.abs().min().item()))
    with torch.no_grad():
        exact(*map(torch.tensor, inputs))
    return min(found) > 5e-6  # float32 errors there are up to 2e-6


def test_gradients_equal_the_reference(case, tmp_path):
    """Gradients are mapped by the rules like weights; the reference computes them in float64."""
    reference, folder, arguments = case
    exact = copy.deepcopy(reference).double()
    drawn = (inputs_of(arguments, seed) for seed in count())
    is_gated = arguments.get("feed_forward", "ffn") != "ffn"
    inputs, masks = next(d for d in drawn if is_gated or is_smooth(exact, d[0]))
    logits = exact(*map(torch.tensor, inputs))
    weights = np.random.default_rng(2).standard_normal(logits.shape)
    (logits * torch.tensor(weights)).sum().backward()
    with torch.no_grad():
        for parameter in exact.parameters():
            parameter.copy_(parameter.grad)
    gradients = load_pretrained(write(tmp_path, arguments, exact.float()))
    expected = {name: np.asarray(v.get_value()) for name, v in named_parameters(gradients).items()}
    bind, params = split(load_pretrained(folder))
    found = jax.jit(jax.grad(lambda p: (bind(p)(*inputs, **masks).logits * weights).sum()))(params)
    ours = {name: np.asarray(v.get_value()) for name, v in named_parameters(bind(found)).items()}
    assert ours.keys() == expected.keys()
    for name, gradient in ours.items():
        error = np.linalg.norm(gradient - expected[name])
        # A key bias adds the same to all scores of a query: its gradient is only rounding.
        scale = expected[name.replace("k_proj.bias", "q_proj.bias")]
        assert error <= TOLERANCE * np.linalg.norm(scale), name


def test_the_round_trip_is_bit_exact(case, tmp_path):
    _, folder, arguments = case
    save_pretrained(load_pretrained(folder), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == arguments
    theirs, ours = (
        torch.load(path / "state_dict.pth", weights_only=True)
        for path in (folder, tmp_path / "out")
    )
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        if name == "pos_encoding.pe":
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-5)  # angles up to 319
        else:
            assert torch.equal(ours[name], tensor), name


def test_the_config_is_written_without_an_origin(case, tmp_path):
    _, folder, arguments = case
    model = load_pretrained(folder)
    model.origin = None
    save_pretrained(model, tmp_path / "out", format="nima")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written == {k: v for k, v in arguments.items() if k != "pad_idx"}
    assert load_pretrained(tmp_path / "out").config == model.config


def test_a_tied_head_that_differs_is_refused(tmp_path):
    reference = randomize(nima.GPTModel(**GPT))
    state = dict(reference.state_dict())
    state["output_projection.weight"] = state["output_projection.weight"] + 1
    torch.save(state, tmp_path / "state_dict.pth")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nima-gpt", **GPT}))
    with pytest.raises(CheckpointError, match=r"output_projection\.weight should be a copy of"):
        load_pretrained(tmp_path)


def test_unsupported_configs_are_refused(tmp_path):
    with pytest.raises(CheckpointError) as error:
        save_pretrained(random_model(), tmp_path / "out", format="nima")
    assert "nima-gpt: nima's GPTModel does not support" in str(error.value)
    assert "nima-transformer: this family supports EncoderDecoderConfig" in str(error.value)
