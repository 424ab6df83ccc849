"""Settings of generation: what is followed, named as not followed, or refused."""

import json

import pytest
import transformers

from jaxllm.errors import UserError
from jaxllm.generation import Sampling, TokenRules
from jaxllm.interop.loading.generation_config import GenerationConfig, read_generation_config


def read(folder, **fields: object) -> GenerationConfig:
    (folder / "generation_config.json").write_text(json.dumps(fields))
    return read_generation_config(folder, 50)


@pytest.mark.parametrize(("eos", "named"), [(2, True), ([0, 2], True), (0, False), (None, False)])
def test_end_tokens_that_bytes_do_not_follow_are_named(tmp_path, eos, named):
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    found = read_generation_config(tmp_path, 256, with_eos=False)
    assert found.eos_ids == ()
    text = f"eos_token_id={eos!r} (a text of bytes ends with 0)"
    assert found.not_followed == ((text,) if named else ())
    assert read_generation_config(tmp_path, 256).not_followed == ()


def test_everything_that_is_followed(tmp_path):
    found = read(
        tmp_path,
        eos_token_id=[3, 4],
        forced_bos_token_id=5,
        forced_eos_token_id=3,
        suppress_tokens=[6, 7],
        begin_suppress_tokens=[8],
        no_repeat_ngram_size=3,
        min_length=9,
        repetition_penalty=1.5,
        length_penalty=2,
        early_stopping="never",
        bad_words_ids=[[9], [3, 4]],
        sequence_bias=[[[5, 6], -1]],
        max_new_tokens=11,
    )
    rules = TokenRules(
        no_repeat_ngram_size=3,
        min_length=9,
        bad_words=((9,), (3, 4)),
        sequence_bias=(((5, 6), -1.0),),
        forced_bos=5,
        forced_eos=(3,),
        suppress=(6, 7),
        begin_suppress=(8,),
    )
    assert found == GenerationConfig(
        eos_ids=(3, 4),
        rules=rules,
        max_new_tokens=11,
        sampling=Sampling(repetition_penalty=1.5),
        length_penalty=2.0,
        early_stopping="never",
    )
    # As in transformers, a number of new tokens takes the place of a length.
    assert read(tmp_path, min_length=9, min_new_tokens=2).rules == TokenRules(min_new_tokens=2)


def test_what_is_not_followed_is_named_with_the_option_that_does_it(tmp_path):
    found = read(
        tmp_path,
        do_sample=True,
        temperature=0.6,
        top_k=20,
        top_p=0.9,
        num_beams=4,
        num_return_sequences=2,
        diversity_penalty=0.5,
        of_my_own=1,
    )
    assert found.not_followed == (
        "num_beams=4 (--beams)",
        "num_return_sequences=2 (--n)",
        "diversity_penalty=0.5",
        "of_my_own=1",
    )
    assert found.sampling == Sampling(temperature=0.6, top_k=20, top_p=0.9)
    found = read(tmp_path, temperature=0.6, top_k=50, num_beams=1, do_sample=False)
    assert found == GenerationConfig()
    # As in transformers, 50 tokens are drawn from unless the file says otherwise.
    assert read(tmp_path, do_sample=True).sampling == Sampling(temperature=1.0, top_k=50)
    assert read(tmp_path, do_sample=True, top_k=0).sampling == Sampling(temperature=1.0)


def test_every_field_of_transformers_is_followed_named_or_without_effect(tmp_path):
    """A default says nothing, and a value that differs is followed or named."""
    defaults = transformers.GenerationConfig().to_dict()
    assert read(tmp_path, **defaults) == GenerationConfig()
    transformers.GenerationConfig(eos_token_id=2, num_beams=3).save_pretrained(tmp_path)
    found = read_generation_config(tmp_path, 50)
    assert found.eos_ids == (2,)
    assert found.not_followed == ("num_beams=3 (--beams)",)


def test_without_its_own_file_the_model_s_config_has_the_settings(tmp_path):
    fields = {"eos_token_id": 2, "forced_bos_token_id": 4, "num_beams": 4, "hidden_size": 3}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = read_generation_config(tmp_path, 50)
    assert found == GenerationConfig(eos_ids=(2,), rules=TokenRules(forced_bos=4))


@pytest.mark.parametrize(
    "fields",
    [
        {"eos_token_id": 50},
        {"eos_token_id": "2"},
        {"suppress_tokens": [1, -1]},
        {"forced_bos_token_id": 1.0},
        {"min_length": "3"},
        {"min_length": -3},
        {"no_repeat_ngram_size": 2**40},
        {"repetition_penalty": True},
        {"max_new_tokens": 1.5},
        {"do_sample": True, "top_p": 0.0},
        {"do_sample": True, "min_p": "0.1"},
        {"early_stopping": "soon"},
        {"bad_words_ids": [[50]]},
        {"bad_words_ids": [1]},
        {"sequence_bias": {"1": 2.0}},
        {"sequence_bias": [[[1], "2"]]},
    ],
    ids=str,
)
def test_what_is_no_token_or_number_is_refused(fields, tmp_path):
    name = [*fields][-1]
    with pytest.raises(UserError, match=name):
        read(tmp_path, **fields)
