"""Mixtures: shares by tokens, the same rows wherever a run begins, and a loss of each source."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from kinds import WAVES
from tiny import random_model

from jaxllm.errors import UserError
from jaxllm.models import build_abstract
from jaxllm.train.config import ConfigError, from_dict, to_dict
from jaxllm.train.data.batches import PERIOD, Batches, check_epochs, interleave
from jaxllm.train.data.chat import ChatConfig
from jaxllm.train.data.documents import DataConfig
from jaxllm.train.data.mixture import MixtureConfig
from jaxllm.train.loss import LossConfig
from jaxllm.train.objective import next_token_loss

T = 32
WEIGHTS = {"web": 5.0, "chat": 3.0, "code": 2.0}


@pytest.fixture
def config(tmp_path):
    texts = [{"text": f"web {i} " * (i % 5 + 1)} for i in range(200)]
    (tmp_path / "web.jsonl").write_text("\n".join(map(json.dumps, texts)))
    talks = [{"prompt": f"chat {i}", "completion": "!" * (i % 20 + 2)} for i in range(90)]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, talks)))
    (tmp_path / "code.txt").write_text("code " * 300)
    sources = {
        "web": DataConfig(text=(f"{tmp_path}/web.jsonl",), held_out=0.1),
        "chat": ChatConfig(
            chat=(f"{tmp_path}/chat.jsonl",), template="plain", packing="padded", held_out=0.1
        ),
        "code": DataConfig(text=(f"{tmp_path}/code.txt",), packing="joined", held_out=0),
    }
    return MixtureConfig(mixture=sources, weights=WEIGHTS, tokenizer="bytes", seed=3)


def examples_of(config):
    return config.load(random_model(vocab_size=256), T)


def take(batches, count, step=0):
    return list(itertools.islice(batches.train(step), count))


def test_the_source_that_runs_out_is_named_at_the_step_at_which_a_row_would_come_again(config):
    examples = examples_of(config)
    chats = examples.mixing.lengths[1]
    seen: set[bytes] = set()
    steps = 0
    for batch in take(Batches(examples, batch_size=8), 200):
        rows = [row.tobytes() for row in batch["tokens"][batch["sources"][:, 1]]]
        if len(seen | set(rows)) < len(seen) + len(rows):
            break
        seen, steps = seen | set(rows), steps + 1
    limited = {**config.mixture, "chat": dataclasses.replace(config.mixture["chat"], max_epochs=1)}
    limited = MixtureConfig(mixture=limited, weights=WEIGHTS, tokenizer="bytes", seed=3)
    check_epochs(examples, steps, 8, limited)
    with pytest.raises(UserError, match=rf"data\.mixture\.chat\.chat=.* but it has {chats}, and"):
        check_epochs(examples, steps + 1, 8, limited)


def test_tokens_have_the_shares_of_the_weights(config):
    batches = Batches(examples_of(config), batch_size=64)
    tokens = np.zeros(3)
    for batch in take(batches, 40):
        each = (batch["segment_ids"] > 0).sum(1)
        tokens += each @ batch["sources"]
    np.testing.assert_allclose(tokens / tokens.sum(), [0.5, 0.3, 0.2], atol=0.01)
    natural = MixtureConfig(mixture=config.mixture, tokenizer="bytes")
    examples = examples_of(natural)
    rows = np.array(examples.mixing.lengths)
    np.testing.assert_allclose(np.array(examples.mixing.shares), rows)


@pytest.mark.parametrize("shares", [[1], [1, 1], [5, 3, 2], [1, 1e-9], [0.3, 1e5, 7]])
def test_turns_are_spread_evenly(shares):
    source, turn = interleave(shares)
    expected = np.array(shares) / sum(shares)
    for number, share in enumerate(expected):
        places = np.flatnonzero(source == number)
        np.testing.assert_array_equal(turn[places], np.arange(len(places)))
        assert abs(len(places) / len(source) - share) < 2 / PERIOD
        if len(places) > 1 and len(shares) < 3:
            assert np.ptp(np.diff(places)) <= 1


def test_every_row_of_a_source_has_a_turn_before_one_comes_again(config):
    examples = examples_of(config)
    batches = Batches(examples, batch_size=7)
    _, length, _ = examples.mixing.lengths
    rows = [
        tuple(row)
        for batch in take(batches, 130)
        for row in batch["tokens"][batch["sources"][:, 1]].tolist()
    ]
    first, second = rows[:length], rows[length : 2 * length]
    assert len(second) == length > 30
    assert sorted(first) == sorted(second)
    assert first != second


def test_a_batch_is_a_function_of_seed_step_and_row(config):
    """From the start or from any step, and in any number of processes."""
    examples = examples_of(config)
    batches = Batches(examples, batch_size=8, seed=1)
    straight = take(batches, 30)
    for step in (0, 1, 13, 29):
        (later,) = take(batches, 1, step)
        for name, array in straight[step].items():
            np.testing.assert_array_equal(later[name], array)
    for rows in np.split(np.array([0, 1, 6, 7, 2, 3, 4, 5]), 4):
        share = Batches(examples, batch_size=8, seed=1, rows=rows)
        for one, whole in zip(take(share, 5, 10**9), take(batches, 5, 10**9), strict=True):
            for name, array in whole.items():
                np.testing.assert_array_equal(one[name], array[rows])
    assert (
        take(Batches(examples, batch_size=8, seed=2), 1)[0]["tokens"] != straight[0]["tokens"]
    ).any()


def test_the_loss_of_each_source_is_that_of_its_rows(config):
    batch = take(Batches(examples_of(config), batch_size=16), 1)[0]
    model = random_model(vocab_size=256, num_layers=1)
    options = LossConfig(chunk_tokens=50)
    loss = jax.jit(lambda batch: next_token_loss(model, batch, options))
    total, _, by_source, _ = loss(batch)
    assert float(by_source.sum()) == pytest.approx(float(total), rel=1e-6)
    for number in range(3):
        own = batch["sources"][:, number]
        alone = {**batch, "mask": batch["mask"] & own[:, None]}
        assert own.any()
        assert float(by_source[number]) == pytest.approx(float(loss(alone).total), rel=1e-5)


def run_of(data) -> dict:
    model = {"vocab_size": 256, "embed_dim": 8, "num_layers": 1, "num_heads": 1, "head_dim": 8}
    sizes = {"steps": 2, "batch_size": 2, "seq_len": 8}
    return {
        "output": "x",
        "model": {**model, "mlp_dim": 8, "num_kv_heads": 1},
        **sizes,
        "data": data,
    }


def test_a_mixture_is_read_from_yaml_and_back(config):
    data = {
        "mixture": {"web": {"text": ["a.txt"]}, "chat": {"chat": ["b.jsonl"], "template": "plain"}},
        "weights": {"web": 1, "chat": 2.5},
    }
    found = from_dict(run_of(data), "run.yaml")
    assert isinstance(found.data.mixture["chat"], ChatConfig)
    assert isinstance(found.data.mixture["web"], DataConfig)
    assert from_dict(to_dict(found), "again") == found


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"mixture": {}}, "data.mixture names no source"),
        (
            {"mixture": {"a": {"txt": ["x"]}}},
            r"data\.mixture\.a: unknown field 'txt'; did you",
        ),
        ({"mixture": {"a": {"chat": ["x"], "form": "y"}}}, r"data\.mixture\.a: form='y': input sh"),
        ({"mixture": {"a": 3}}, r"data\.mixture\.a: expected a mapping"),
        (
            {"mixture": {"a": {"tokenizer": "x"}}},
            r"a\.tokenizer is set; all sources have data",
        ),
        (
            {"mixture": {"a": {}}, "weights": {"b": 1}},
            "data.weights names b, but the sources",
        ),
        ({"mixture": {"a": {}}, "weights": {"a": 0}}, r"data\.weights\.a=0\.0 is not positive"),
        ({"mixture": {"a": {}}, "packing": "joined"}, "unknown field 'data.packing'"),
    ],
    ids=range(8),
)
def test_a_wrong_mixture_is_one_line(data, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_dict(run_of(data), "run.yaml")
    assert str(error.value).startswith("run.yaml: ")
    assert "\n" not in str(error.value)


def test_a_source_that_cannot_be_loaded_is_named(config, tmp_path):
    (tmp_path / "web.jsonl").write_text('{"txt": 1}')
    with pytest.raises(UserError, match=r"data\.mixture\.web: .*web\.jsonl, line 1: "):
        examples_of(config)
    with pytest.raises(UserError, match=r"data\.mixture\.web: text trains a Decoder"):
        config.load(build_abstract(WAVES), T)
