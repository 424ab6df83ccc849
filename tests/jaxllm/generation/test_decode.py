"""Cached generation in an on-device loop equals uncached generation, for any batch."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiers import examples
from tiny import random_model

from jaxllm.config import ExpertsConfig, LayerKind, RopeConfig
from jaxllm.errors import NonFiniteError, UserError
from jaxllm.generation import Sampling, beam_search, generate
from jaxllm.generation.loop import Program, begin
from jaxllm.generation.scores.settings import stack_settings
from jaxllm.models import with_scanned_layers

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 96, length).tolist() for length in (5, 17, 1, 9)]


def greedy_by_hand(model, prompt: list[int], new: int) -> list[int]:
    """Greedy decoding with one full forward pass per token."""
    forward = jax.jit(lambda tokens: model(tokens).logits)
    tokens = list(prompt)
    for _ in range(new):
        # Padding on the right cannot change what comes before it.
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(tokens)] = tokens
        tokens.append(int(forward(padded)[0, len(tokens) - 1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.cases(1)
@pytest.mark.parametrize(
    ("scan_layers", "rope_layout"),
    examples(
        itertools.product([True, False], ["half", "interleaved"]),
        (True, "half"),
        (False, "interleaved"),
    ),
)
def test_greedy_equals_a_full_forward_pass_per_token(scan_layers, rope_layout):
    model = random_model(scan_layers=scan_layers, rope=RopeConfig(layout=rope_layout))
    assert generate(model, PROMPTS, 12) == [greedy_by_hand(model, p, 12) for p in PROMPTS]


@pytest.mark.parametrize(
    "sampling",
    examples(
        [Sampling(), Sampling(temperature=1.0, top_k=30, top_p=0.95)],
        Sampling(temperature=1.0, top_k=30, top_p=0.95),
    ),
)
def test_prompt_gives_the_same_tokens_alone_and_in_a_batch(sampling):
    model = with_scanned_layers(random_model(), False)
    together = generate(model, PROMPTS, 20, sampling=sampling, seed=5)
    assert generate(model, PROMPTS[:1], 20, sampling=sampling, seed=5) == together[:1]
    if sampling.temperature == 0:
        assert [generate(model, [p], 20)[0] for p in PROMPTS] == together


def test_samples_depend_on_seed_and_row():
    model = with_scanned_layers(random_model(), False)
    sampling = Sampling(temperature=1.0)
    rows = generate(model, [PROMPTS[0]] * 3, 16, sampling=sampling, seed=1)
    assert rows == generate(model, [PROMPTS[0]] * 3, 16, sampling=sampling, seed=1)
    assert rows != generate(model, [PROMPTS[0]] * 3, 16, sampling=sampling, seed=2)
    assert len({tuple(row) for row in rows}) == 3


def test_row_ends_with_its_first_eos_token():
    model = with_scanned_layers(random_model(), False)
    free = generate(model, PROMPTS, 20)
    end = free[1][4]
    ended = generate(model, PROMPTS, 20, eos_ids=[end])
    for row, stopped in zip(free, ended, strict=True):
        cut = row.index(end) + 1 if end in row else len(row)
        assert stopped == row[:cut]


@pytest.mark.parametrize("penalty", examples([0.8, 1.5], 1.5))
def test_repetition_penalty_covers_prompt_and_new_tokens(penalty):
    """Compares with a plain loop that looks through the whole text for each token."""
    model = with_scanned_layers(random_model(), False)
    forward = jax.jit(lambda tokens: model(tokens).logits)

    def by_hand(tokens: list[int], new: int) -> list[int]:
        length = len(tokens)
        for _ in range(new):
            padded = np.zeros((1, 64), np.int32)
            padded[0, : len(tokens)] = tokens
            scores = np.array(forward(padded)[0, len(tokens) - 1])
            for token in set(tokens):
                scores[token] *= penalty if scores[token] < 0 else 1 / penalty
            tokens = [*tokens, int(scores.argmax())]
        return tokens[length:]

    found = generate(model, PROMPTS, 20, sampling=Sampling(repetition_penalty=penalty))
    assert found == [by_hand(prompt, 20) for prompt in PROMPTS]
    assert found != generate(model, PROMPTS, 20)


def test_repetition_penalty_applies_to_sampling():
    """With a very large repetition penalty, no sampled token repeats."""
    model = with_scanned_layers(random_model(), False)
    sampling = Sampling(repetition_penalty=1e6, temperature=1e-4, top_k=5)
    for prompt, row in zip(PROMPTS, generate(model, PROMPTS, 20, sampling=sampling), strict=True):
        assert len({*prompt, *row}) == len(set(prompt)) + 20


def test_sharded_model_generates_the_same_tokens():
    from jaxllm.params import named_parameters, parameter_shardings, with_arrays
    from jaxllm.train import make_mesh

    model = random_model()
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    places = parameter_shardings(model, mesh)
    arrays = {
        n: jax.device_put(v.get_value(), places[n]) for n, v in named_parameters(model).items()
    }
    with jax.set_mesh(mesh):
        assert generate(with_arrays(model, arrays), PROMPTS, 12) == generate(model, PROMPTS, 12)


def test_prompts_of_similar_length_share_a_compiled_program():
    model = with_scanned_layers(random_model(seed=9), False)
    before = begin._cache_size()
    for length, new in ((3, 5), (7, 9), (16, 16), (11, 1)):
        [row] = generate(model, [RNG.integers(0, 96, length).tolist()], new)
        assert len(row) == new
    assert begin._cache_size() - before <= 1


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([], 4, "no prompts"),
        ([[1], []], 4, "prompt 1 is empty"),
        ([[1, 96]], 4, "prompt 0 has token 96, but vocab_size=96"),
        ([[-1]], 4, "prompt 0 has token -1"),
        ([[1]], 0, "max_new_tokens=0 is less than 1"),
        ("text", 4, r"prompts='text': give a list of prompts, each a list of token ids"),
        (5, 4, r"prompts=5: give a list of prompts"),
        (["text"], 4, r"prompt 0 is 'text': give a list of prompts"),
        ([1, 2], 4, r"prompt 0 is 1: give a list of prompts, .*, as in \[\[1, 2\], \[3\]\]"),
        (np.arange(3), 4, r"prompt 0 is .*0.*: give a list of prompts"),
        ([[1], [2, 1.5]], 4, r"prompt 1 has 1\.5, which is no token id: give a list of prompts"),
        (np.ones((1, 2), np.float32), 4, r"prompt 0 has .*1\.0.*, which is no token id"),
        ([[1, True]], 4, r"prompt 0 has True, which is no token id"),
        ([[1, "a"]], 4, r"prompt 0 has 'a', which is no token id"),
        ([[[1, 2], [3]]], 4, r"prompt 0 has \[1, 2\], which is no token id"),
        (np.ones((1, 2, 1), np.int32), 4, r"prompt 0 has array.*, which is no token id"),
        ([[1]], 1.5, r"max_new_tokens=1\.5 is not a whole number"),
        ([[1]], 10**12, "max_new_tokens=1000000000000 is more than 1073741824"),
    ],
)
def test_invalid_prompts_are_rejected(prompts, new, message):
    with pytest.raises(ValueError, match=message):
        generate(random_model(), prompts, new)


@pytest.mark.exhaustive
def test_prompts_may_be_arrays():
    model, prompts = random_model(), [[5, 6, 7], [8, 9, 10]]
    expected = generate(model, prompts, 2)
    for given in (np.array(prompts), jnp.array(prompts), tuple(map(tuple, prompts))):
        assert generate(model, given, np.int64(2)) == expected


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seed_that_jax_would_cut_is_rejected(seed):
    with pytest.raises(ValueError, match=rf"seed={seed} is not in \[0, 2\*\*32\)"):
        generate(random_model(), [[1]], 4, seed=seed)


def test_decoding_loop_runs_on_the_device():
    """The compiled program has one loop, whose body is a forward pass with its cache writes."""
    model = with_scanned_layers(random_model(), False)
    graphdef, state = nnx.split(model)
    settings = stack_settings(96, [Sampling()])
    arguments = (np.zeros((1, 16), np.int32), np.array([5], np.int32), settings, np.int32(8))
    program = begin.trace(Program(graphdef), 16, nnx.to_pure_dict(state), *arguments).jaxpr
    [loop] = [eqn for eqn in program.eqns if eqn.primitive.name == "while"]
    body = str(loop.params["body_jaxpr"])
    num_layers = model.config.num_layers
    assert body.count("custom_vjp_call[") >= 7 * num_layers
    assert body.count(" scatter[") >= 2 * num_layers


@pytest.mark.cases(1)
@pytest.mark.parametrize("form", [{}, {"sampling": Sampling(temperature=1.0)}])
def test_logits_that_are_nan_are_refused(form):
    model = random_model(num_layers=1)
    table = model.embed.embedding
    table.set_value(table.get_value().at[7].set(jnp.nan))
    assert generate(model, [[1, 2]], 2, **form)
    with pytest.raises(NonFiniteError, match="the logits after prompt 1 are NaN"):
        generate(model, [[1, 2], [7, 3]], 2, **form)
    with pytest.raises(NonFiniteError, match="the logits after prompt 1 are NaN"):
        beam_search(model, [[1, 2], [7, 3]], 2, num_beams=2)


def test_experts_with_a_capacity_are_refused_since_rows_would_change_each_other():
    """A whole sequence is computed; its tokens one by one, or beside others, would differ."""
    experts = ExpertsConfig(num_experts=4, top_k=2, mlp_dim=24, capacity=3)
    model = random_model(pattern=(LayerKind(mlp="experts"),), experts=experts, num_layers=1)
    forward = jax.jit(lambda tokens: model(tokens).logits)
    assert np.isfinite(forward(np.array([PROMPTS[0]]))).all()
    for run in (generate, partial(beam_search, num_beams=2)):
        with pytest.raises(UserError, match=r"experts\.capacity=3: .* one whole sequence instead"):
            run(model, PROMPTS[:1], 3)
    with pytest.raises(UserError, match=r"experts\.capacity=3"):
        model.init_cache(1, 8)
