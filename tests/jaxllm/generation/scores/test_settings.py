"""The settings of rows as arrays: token sets as bits, sequences padded to few sizes."""

import numpy as np

from jaxllm.generation import Sampling, TokenRules
from jaxllm.generation.scores.processors import EOS, FORBIDDEN, STOP, SUPPRESSED
from jaxllm.generation.scores.settings import stack_settings


def test_sets_are_bits_of_each_token_and_row():
    rules = [TokenRules(suppress=(2, 4)), TokenRules(allowed=(0, 4))]
    found = stack_settings(5, [Sampling()] * 2, rules, eos_ids=(4, 7), stop_ids=(1,))
    assert found.sets_BV.tolist() == [
        [0, STOP, SUPPRESSED, 0, EOS | SUPPRESSED],
        [0, STOP | FORBIDDEN, FORBIDDEN, FORBIDDEN, EOS],
    ]
    assert found.has_B.tolist() == [EOS | STOP | SUPPRESSED, EOS | STOP | FORBIDDEN]


def test_no_limit_is_the_size_of_the_vocabulary_or_one():
    found = stack_settings(5, [Sampling(), Sampling(temperature=1.0, top_k=9, top_p=0.5)])
    assert found.top_k_B.tolist() == [5, 5]
    assert found.top_p_B.tolist() == [1, 0.5]
    assert found.typical_p_B.tolist() == [1, 1]


def test_shapes_depend_on_the_rows_alone_unless_sequences_are_long():
    """Any number of end-of-sequence tokens, and any rules of single tokens, share a program."""
    shapes = [
        [np.shape(x) for x in stack_settings(5, [Sampling()], [rules], eos_ids=eos)]
        for rules, eos in (
            (TokenRules(), ()),
            (TokenRules(bad_words=((1,),), suppress=(1, 2, 3)), (1, 2)),
        )
    ]
    assert shapes[0] == shapes[1]
    rules = TokenRules(bad_words=((1, 2, 3), (3,), (4,)), sequence_bias=(((1, 2), 0.5),))
    found = stack_settings(5, [Sampling()], [rules], eos_ids=(4,))
    assert found.biased_BWL.tolist() == [
        [[-1, -1, 1, 2], [-1, 1, 2, 3], [-1, -1, -1, 3], [-1, -1, -1, -1]]
    ]
    assert found.bias_BW.tolist() == [[0.5, -np.inf, -np.inf, 0]]
