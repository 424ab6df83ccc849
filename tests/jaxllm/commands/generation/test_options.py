"""Options of generation take the place of what the checkpoint says, field by field."""

import argparse

import pytest

from jaxllm.commands.generation.options import (
    add_sampling,
    check_sampling,
    merge_sampling,
    messages_of,
)
from jaxllm.errors import UserError
from jaxllm.generation import Sampling


def parse(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_sampling(parser)
    return parser.parse_args(options)


def test_options_replace_fields_of_the_checkpoint():
    found = Sampling(temperature=0.7, top_k=50, typical_p=0.9, repetition_penalty=1.1)
    assert merge_sampling(parse(), found) == found
    merged = merge_sampling(parse("--top-k", "5", "--min-p", "0.1"), found)
    assert merged == Sampling(
        temperature=0.7, top_k=5, min_p=0.1, typical_p=0.9, repetition_penalty=1.1
    )


def test_a_temperature_of_zero_is_greedy_whatever_the_checkpoint_says():
    found = Sampling(temperature=0.7, top_k=50, repetition_penalty=1.1)
    greedy = merge_sampling(parse("--temperature", "0"), found)
    assert greedy == Sampling(repetition_penalty=1.1)


def test_options_out_of_range_are_refused_before_the_model_is_loaded():
    check_sampling(parse("--top-k", "5"))  # the checkpoint may have a temperature
    with pytest.raises(UserError, match=r"top_p=2\.0 is not in"):
        check_sampling(parse("--top-p", "2"))
    with pytest.raises(UserError, match="top_k need a temperature above 0"):
        check_sampling(parse("--top-k", "5", "--temperature", "0"))
    with pytest.raises(UserError, match="top_k need a temperature above 0"):
        merge_sampling(parse("--top-k", "5"), Sampling())


def test_a_system_message_comes_first():
    user = {"role": "user", "content": "hi"}
    assert messages_of(None, "hi") == [user]
    assert messages_of("be kind", "hi") == [{"role": "system", "content": "be kind"}, user]
