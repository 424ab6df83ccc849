"""Models from a source of vectors to a target: ragged rows, caches, sizes that do not fit."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
from tiers import examples
from tiny import random_of, relative_l2
from vector_models import (
    BOTH_WAYS,
    LENGTHS,
    PAIR,
    SEQUENCE,
    SOURCE_BSI,
    SOURCE_LENGTHS,
    TOLERANCE,
    WINDOW,
    X_BTI,
    D,
    H,
    S,
    T,
    padded,
    run,
    segments,
)

from jaxllm.models import with_scanned_layers, with_window
from jaxllm.params import named_parameters


def test_a_source_is_projected():
    model = random_of(PAIR)
    params = {name: np.asarray(v.get_value()) for name, v in named_parameters(model).items()}
    expected = SOURCE_BSI @ params["source_proj.kernel"] + params["source_proj.bias"]
    assert relative_l2(model.embed_source(SOURCE_BSI), expected) < TOLERANCE
    with pytest.raises(AssertionError):  # a number too few in each token
        model.embed_source(SOURCE_BSI[..., :-1])


@pytest.mark.exhaustive
def test_pairs_of_ragged_rows_are_as_one_by_one():
    model = random_of(PAIR)
    together = run(
        model,
        padded(SOURCE_BSI, SOURCE_LENGTHS),
        padded(X_BTI, LENGTHS),
        src_segment_ids=segments(SOURCE_LENGTHS, S),
        segment_ids=segments(LENGTHS, T),
    )
    for row, (source, target) in enumerate(zip(SOURCE_LENGTHS, LENGTHS, strict=True)):
        alone = run(model, SOURCE_BSI[row : row + 1, :source], X_BTI[row : row + 1, :target])
        assert relative_l2(together[row, :target], alone[0]) < TOLERANCE


@pytest.mark.parametrize("window", examples([None, WINDOW], WINDOW))
@pytest.mark.parametrize("scan", examples([True, False], True))
def test_a_cached_decoder_is_an_uncached_one(window, scan):
    """The keys of the source are computed once, when the cache is made."""
    model = with_scanned_layers(random_of(PAIR), scan)
    model = model if window is None else with_window(model, window)
    ids = segments(SOURCE_LENGTHS, S)
    whole = run(model, padded(SOURCE_BSI, SOURCE_LENGTHS), X_BTI, src_segment_ids=ids)
    source, _ = model.encode(padded(SOURCE_BSI, SOURCE_LENGTHS), segment_ids=ids)
    assert source.x_BSD.shape == (3, S, D)
    decode = jax.jit(lambda x, p, cache: model.decode(x, positions=p, cache=cache)[:2])
    for first in (1, 4, 5, 6):
        cache, parts = model.init_cache(source, T), []
        for a, b in itertools.pairwise([0, first, *range(first + 1, T + 1)]):
            out, cache = decode(X_BTI[:, a:b], np.arange(a, b)[None], cache)
            parts.append(out)
        assert relative_l2(np.concatenate(parts, axis=1), whole) < TOLERANCE
    kept = cache[next(iter(cache))].source.k_BSKH
    assert kept.shape[-3:] == (S, 2, H)


def test_stacks_that_do_not_fit_are_errors():
    for changes, complaint in (
        ({"source_dim": 0}, "source_dim=0 is less than 1"),
        ({"encoder": SEQUENCE}, "encoder.attention.causal=True: it must be False"),
        ({"encoder": BOTH_WAYS}, "encoder is a SequenceConfig"),
        ({"decoder": SEQUENCE}, "decoder.attention.cross=False"),
        (
            {"encoder": dataclasses.replace(PAIR.encoder, embed_dim=32)},
            "embed_dim is 32 in the encoder and 24 in the decoder",
        ),
    ):
        with pytest.raises(ValueError, match=complaint):
            dataclasses.replace(PAIR, **changes)
