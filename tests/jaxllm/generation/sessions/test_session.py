"""A session gives the tokens of a whole prompt, and reads only what is new of it."""

import jax
import numpy as np
import pytest
from kinds import CONFIGS
from tiers import examples
from tiny import random_model, random_of

from jaxllm.config import AttentionConfig, LayerKind, RopeConfig, RopeScaling
from jaxllm.errors import UserError
from jaxllm.generation import Sampling, Session, TokenRules, generate, incremental

RNG = np.random.default_rng(0)
WINDOWS = (LayerKind(attention="window"), LayerKind())


def fresh(count: int) -> list[int]:
    return RNG.integers(2, 96, count).tolist()


MODELS = {
    "full": lambda: random_model(num_layers=1),
    "scanned": random_model,
    "windows": lambda: random_model(
        pattern=WINDOWS, attention=AttentionConfig(window=6), num_layers=2
    ),
}


@pytest.mark.parametrize("kind", examples(MODELS, "windows"))
@pytest.mark.parametrize(
    "sampling", examples([Sampling(), Sampling(temperature=1.0, top_k=30)], Sampling())
)
def test_turns_give_the_tokens_of_whole_prompts(kind, sampling):
    """Also as the cache grows, after several chunks of history, and past windows."""
    model = MODELS[kind]()
    session, prompt, previous = Session(model), fresh(9), 0
    settings = {"sampling": sampling, "rules": TokenRules(no_repeat_ngram_size=3), "eos_ids": [1]}
    for turn in range(4):
        expected = generate(model, [prompt], 12, seed=[turn], **settings)[0]
        row = session.generate(prompt, 12, seed=turn, **settings)
        assert (row, row.ended) == (expected, expected.ended)
        new = 7 + 4 * turn
        if turn:
            assert session.num_read == previous + 1  # what was said, and the last token
        previous, prompt = new, [*prompt, *row, *fresh(new)]


@pytest.mark.parametrize("kind", examples(MODELS, "full"))
def test_what_was_said_may_be_taken_back(kind):
    """Rings have overwritten what came before: there, all is read again."""
    model = MODELS[kind]()
    session, prompt = Session(model), fresh(20)
    session.generate(prompt, 12)
    for kept in (14, 9, 3, 0):
        other = [*prompt[:kept], *fresh(9)]
        assert session.generate(other, 12) == generate(model, [other], 12)[0]
        if kind != "windows":
            assert session.num_read == len(other) - kept
    assert session.generate(other, 12) == generate(model, [other], 12)[0]


def test_an_interrupted_answer_leaves_the_session_usable():
    model = random_model(num_layers=1)
    session, prompt, said = Session(model), fresh(9), []

    def stop_at_three(row: int, tokens: list[int]) -> None:
        said.extend(tokens)
        if len(said) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.generate(prompt, 12, stream=stop_at_three)
    longer = [*prompt, *said, *fresh(4)]
    assert session.generate(longer, 12) == generate(model, [longer], 12)[0]
    assert session.num_read == 5
    for array in jax.tree.leaves(session.cache):
        array.delete()
    session.cache, session.known = None, []
    assert session.generate(longer, 12) == generate(model, [longer], 12)[0]


@pytest.mark.exhaustive
def test_long_additions_are_read_in_chunks(monkeypatch):
    model = MODELS["windows"]()
    prompt = fresh(9)
    whole = [*prompt, *fresh(40)]
    expected = generate(model, [whole], 12)[0]
    monkeypatch.setattr(incremental, "CHUNK", 7)
    jax.clear_caches()
    session = Session(model, cache_dtype="float32")
    first = session.generate(prompt, 1)
    whole[9] = first[0]
    expected = generate(model, [whole], 12)[0]
    assert session.generate(whole, 12) == expected
    jax.clear_caches()


def test_models_without_a_text_to_continue():
    scaling = RopeScaling(kind="dynamic", factor=2.0, original_max_len=16)
    turning = random_model(num_layers=1, rope=RopeConfig(scaling=scaling))
    session, prompt = Session(turning), fresh(9)
    row = session.generate(prompt, 12)
    longer = [*prompt, *row, *fresh(3)]
    assert session.generate(longer, 12) == generate(turning, [longer], 12)[0]
    assert session.num_read == len(longer)
    with pytest.raises(UserError, match="a Session continues the text of a decoder"):
        Session(random_of(CONFIGS["encoder-decoder"]))
    with pytest.raises(UserError, match="prompt 0 is empty"):
        session.generate([], 3)
