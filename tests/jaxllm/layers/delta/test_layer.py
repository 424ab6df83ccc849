"""Gated DeltaNet: any cut of a text, packed rows and meshes give the same; its cache is small."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import examples
from tiny import TINY, random_model, relative_l2

from jaxllm.config import DeltaConfig, LayerKind
from jaxllm.errors import UserError
from jaxllm.generation import Engine, Session, beam_search, generate
from jaxllm.layers.attention.recurrent_cache import DeltaCache
from jaxllm.models import with_scanned_layers
from jaxllm.params import named_parameters, with_arrays
from jaxllm.train import make_mesh

TOLERANCE = 1e-5  # relative L2, float32
DELTA = DeltaConfig(num_heads=8, num_key_heads=4, key_dim=6, value_dim=10, conv_size=4)
LAYERS = (LayerKind(attention="delta"), LayerKind())
MESHES = {
    "tensor": {"tensor": 4, "fsdp": 2},
    "sequence": {"sequence": 2, "data": 2, "tensor": 2},
    "heads that do not divide": {"tensor": 8},
}
T = 90  # more than a chunk
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab_size, (2, T))
CHANGES = {"attention.delta": DELTA, "attention.gated": True, "pattern": LAYERS}


def delta_model(**changes):
    return random_model({**CHANGES, **changes}, num_layers=2, scan_layers=False)


@pytest.fixture(scope="module")
def model():
    return delta_model()


@jax.jit
def logits_of(model, tokens):
    return model(tokens).logits


@jax.jit
def step(model, tokens, positions, cache):
    return model(tokens, positions=positions, cache=cache)


@jax.jit
def packed_logits(model, tokens, ids, places):
    return model(tokens, segment_ids=ids, positions=places).logits


def prompts_of(lengths: tuple[int, ...]) -> list[list[int]]:
    rng = np.random.default_rng(2)
    return [rng.integers(0, TINY.vocab_size, length).tolist() for length in lengths]


def test_pieces_with_a_cache_equal_the_whole(model):
    cache, start, logits = model.init_cache(2, T), 0, []
    for size in (7, 1, 1, 81):
        places = jnp.arange(start, start + size)[None]
        out = step(model, TOKENS[:, start : start + size], places, cache)
        cache, start = out.cache, start + size
        logits.append(out.logits)
    assert relative_l2(np.concatenate(logits, axis=1), logits_of(model, TOKENS)) <= TOLERANCE


def test_rows_of_several_lengths_are_padded_after_their_tokens(model):
    """Padding changes neither the state nor what the convolutions see of the next tokens."""
    cache, lengths = model.init_cache(2, T), np.array([5, 12])
    places = np.arange(12)[None]
    places = np.where(places < lengths[:, None], places, -1)
    cache = step(model, TOKENS[:, :12], places, cache).cache
    found = []
    for i in range(4):
        at = lengths + i
        out = step(model, TOKENS[[0, 1], at][:, None], at[:, None], cache)
        cache = out.cache
        found.append(out.logits[:, 0])
    whole = np.asarray(logits_of(model, TOKENS))
    expected = np.stack([whole[row, n : n + 4] for row, n in enumerate(lengths)])
    assert relative_l2(np.stack(found, axis=1), expected) <= TOLERANCE


def test_packed_documents_are_as_if_alone(model):
    """Segments reset the state and the convolutions, within a chunk and beyond it."""
    sizes = [11, 2, 60, 17]
    ids = np.repeat([[3, 1, 2, 0]], sizes, axis=1)
    places = np.concatenate([np.arange(size) for size in sizes])[None]
    packed = packed_logits(model, TOKENS[:1], ids, places)
    start = 0
    for size in sizes[:3]:  # the last is padding
        own = slice(start, start + size)
        alone = logits_of(model, TOKENS[:1, own])
        assert relative_l2(packed[:, own], alone) <= TOLERANCE
        start += size


@pytest.mark.exhaustive
def test_gradients_of_packed_documents_are_the_sum_of_theirs(model):
    sizes = [31, 59]
    ids = np.repeat([[1, 2]], sizes, axis=1)
    places = np.concatenate([np.arange(size) for size in sizes])[None]
    weights = np.random.default_rng(1).standard_normal((1, T, TINY.vocab_size))
    names = [name for name in named_parameters(model) if "layers.0.attn." in name]
    arrays = {name: named_parameters(model)[name].get_value() for name in names}
    others = {n: v.get_value() for n, v in named_parameters(model).items()}

    def packed(arrays, tokens, ids, places):
        own = with_arrays(model, {**others, **arrays})
        return (own(tokens, segment_ids=ids, positions=places).logits * weights).sum()

    def alone(arrays, tokens):
        own = with_arrays(model, {**others, **arrays})
        parts = slice(0, sizes[0]), slice(sizes[0], T)
        return sum((own(tokens[:, one]).logits * weights[:, one]).sum() for one in parts)

    found = jax.jit(jax.grad(packed))(arrays, TOKENS[:1], ids, places)
    expected = jax.jit(jax.grad(alone))(arrays, TOKENS[:1])
    for name in names:
        assert relative_l2(found[name], expected[name]) <= TOLERANCE, name


@pytest.mark.parametrize("axes", examples(MESHES, "tensor"))
def test_on_a_mesh_it_computes_the_same(model, axes):
    mesh = make_mesh(**MESHES[axes])
    with jax.set_mesh(mesh):
        found = jax.jit(lambda model, tokens: model(tokens).logits)(model, TOKENS)
    assert relative_l2(found, logits_of(model, TOKENS)) <= TOLERANCE


def test_a_cache_is_as_small_for_any_length(model):
    for length, dtype in ((50, None), (5000, "int8")):
        cache = model.init_cache(3, length, dtype=dtype)
        own = [one for one in cache.values() if isinstance(one, DeltaCache)]
        assert len(own) == 1
        state = 4 * 8 * 6 * 10
        last = 4 * 3 * (2 * 4 * 6 + 8 * 10)
        assert sum(x.nbytes for x in jax.tree.leaves(own)) == 3 * (state + last + 4)


PLACES = {"gap": [4, 5], "again": [2, 3], "padding before": [-1, 3]}


@pytest.mark.parametrize("given", examples(PLACES, "again"))
def test_tokens_that_do_not_continue_a_state_give_nan(model, given):
    """Other rows keep their values."""
    places = PLACES[given]
    cache = step(model, TOKENS[:, :3], jnp.arange(3)[None], model.init_cache(2, T)).cache
    both = np.array([places, [3, 4]])
    out = step(model, TOKENS[:, 3:5], both, cache)
    assert np.isnan(out.logits[0]).any()
    assert np.isfinite(out.logits[1]).all()
    later = step(model, TOKENS[:, 5:6], np.array([[5], [5]]), out.cache)
    assert np.isnan(later.logits[0]).all()
    assert relative_l2(later.logits[1], logits_of(model, TOKENS)[1, 5:6]) <= TOLERANCE


@pytest.mark.exhaustive
def test_prompts_of_several_lengths_are_continued_as_if_alone(model):
    prompts = prompts_of((5, 17, 1))
    together = generate(model, prompts, 8)
    assert together == [generate(model, [prompt], 8)[0] for prompt in prompts]
    assert together == generate(with_scanned_layers(model, True), prompts, 8)


@pytest.mark.exhaustive
def test_long_prompts_are_read_in_chunks(model, monkeypatch):
    prompts = prompts_of((50, 7, 33))
    expected = generate(model, prompts, 6)
    monkeypatch.setattr("jaxllm.generation.incremental.CHUNK", 16)
    jax.clear_caches()
    assert generate(model, prompts, 6) == expected


@pytest.mark.exhaustive
def test_requests_enter_slots_as_others_leave(model):
    prompts = prompts_of((5, 9, 1, 7, 3))
    engine = Engine(model, slots=2, max_len=32)
    numbers = [engine.submit(prompt=prompt, max_new_tokens=6) for prompt in prompts]
    found = engine.run()
    assert [list(found[number]) for number in numbers] == generate(model, prompts, 6)


@pytest.mark.exhaustive
def test_beams_take_their_states_along(model):
    """The best of several is at least as likely as the greedy continuation, and one is it."""
    prompts = prompts_of((7, 3))
    greedy = generate(model, prompts, 6)
    assert beam_search(model, prompts, 6, num_beams=1) == greedy
    for prompt, beam, own in zip(
        prompts, beam_search(model, prompts, 6, num_beams=4), greedy, strict=True
    ):
        scores = []
        for tokens in (beam, own):
            whole = np.asarray([prompt + list(tokens)])
            each = jax.nn.log_softmax(logits_of(model, whole)[0, len(prompt) - 1 : -1])
            scores.append(float(each[np.arange(len(tokens)), np.asarray(tokens)].sum()))
        assert scores[0] >= scores[1] - 1e-4


@pytest.mark.exhaustive
def test_a_conversation_goes_on_from_the_state_and_begins_anew_if_it_must(model):
    session, prompt = Session(model), prompts_of((9,))[0]
    for turn in range(3):
        expected = generate(model, [prompt], 5)[0]
        found = session.generate(prompt, 5)
        assert list(found) == expected
        assert session.num_read == (len(prompt) if turn == 0 else 4)
        prompt = [*prompt, *found, *prompts_of((3,))[0]]
    other = [*prompt[:-6], 1]
    assert list(session.generate(other, 5)) == generate(model, [other], 5)[0]
    assert session.num_read == len(other)

    def stop(row, tokens):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.generate(prompt, 5, stream=stop)
    longer = [*prompt, *session.known[len(prompt) :], 7, 8]
    assert list(session.generate(longer, 5)) == generate(model, [longer], 5)[0]


def test_a_draft_that_cannot_take_back_tokens_is_refused(model):
    plain = random_model(num_layers=1)
    for own, draft, name in ((model, plain, "model"), (plain, model, "draft")):
        with pytest.raises(UserError, match=f"the {name} has layers of gated DeltaNet"):
            generate(own, [[1, 2, 3]], 4, draft=draft)
    with pytest.raises(ValueError, match="no token of a recurrent state can be taken back"):
        model.init_cache(1, 10, spare=2)
