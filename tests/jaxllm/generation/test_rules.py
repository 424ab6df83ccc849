"""Rules about tokens choose the tokens that transformers chooses with the same settings."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from tiers import examples
from tiny import random_model

from jaxllm.errors import UserError
from jaxllm.generation import Sampling, TokenRules, beam_search, generate
from jaxllm.generation.scores.processors import Text, process
from jaxllm.generation.scores.settings import stack_settings
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.models import with_scanned_layers

RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(0, 96, length).tolist() for length in (5, 9, 1)]
NEW = 10
ENDS = [*range(0, 96, 4)]
# Our settings, and those of transformers.
CASES = {
    "suppress": (
        {"suppress": (*range(1, 60),), "begin_suppress": (*range(60, 90),)},
        {"suppress_tokens": [*range(1, 60)], "begin_suppress_tokens": [*range(60, 90)]},
    ),
    "forced": (
        {"forced_bos": 7, "forced_eos": (12, 18), "begin_suppress": (*range(0, 40),)},
        {
            "forced_bos_token_id": 7,
            "forced_eos_token_id": [12, 18],
            "begin_suppress_tokens": [*range(0, 40)],
        },
    ),
    "length": ({"min_length": 9}, {"min_length": 9}),
    "new length": ({"min_new_tokens": 4}, {"min_new_tokens": 4}),
    "bigrams": ({"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 2}),
    "unigrams": ({"no_repeat_ngram_size": 1}, {"no_repeat_ngram_size": 1}),
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    model = with_scanned_layers(random_model(num_layers=2), False)
    folder = tmp_path_factory.mktemp("rules") / "llama"
    save_pretrained(model, folder, format="hf")
    return model, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def translator(tmp_path_factory):
    sizes = {"vocab_size": 96, "d_model": 32, "max_position_embeddings": 64}
    heads = {f"{side}_attention_heads": 4 for side in ("encoder", "decoder")}
    layers = {f"{side}_layers": 1 for side in ("encoder", "decoder")}
    widths = {f"{side}_ffn_dim": 48 for side in ("encoder", "decoder")}
    ids = {"pad_token_id": 0, "bos_token_id": 3, "eos_token_id": 1, "decoder_start_token_id": 2}
    config = transformers.BartConfig(**sizes, **heads, **layers, **widths, **ids)
    config.forced_eos_token_id = None
    theirs = transformers.BartForConditionalGeneration(config).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            is_scale = "norm" in name and name.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.4 + is_scale)
    folder = tmp_path_factory.mktemp("rules") / "bart"
    theirs.save_pretrained(folder)
    return load_pretrained(folder), theirs


def by_transformers(theirs, prompt: list[int], num_beams: int, ends: list[int], **options):
    tokens = torch.tensor([prompt])
    settings = {"pad_token_id": 0, "eos_token_id": ends, "do_sample": False, **options}
    if theirs.config.is_encoder_decoder:
        settings["decoder_start_token_id"] = 2
    config = transformers.GenerationConfig(max_new_tokens=NEW, num_beams=num_beams, **settings)
    theirs.generation_config = config
    out = theirs.generate(tokens, attention_mask=torch.ones_like(tokens))[0].tolist()
    out = out[1 if theirs.config.is_encoder_decoder else len(prompt) :]
    cut = next((i + 1 for i, token in enumerate(out) if token in ends), len(out))
    return out[:cut]


@pytest.mark.cases(1, exhaustive=6)
@pytest.mark.parametrize("num_beams", examples([1, 3], 3))
@pytest.mark.parametrize("case", examples(CASES, "forced", "bigrams"))
@pytest.mark.parametrize("kind", ["decoder", "translator"])
def test_tokens_match_transformers(kind, case, num_beams, request):
    model, theirs = request.getfixturevalue(kind)
    rules, options = TokenRules(**CASES[case][0]), CASES[case][1]
    prompts = PROMPTS if kind == "decoder" else PROMPTS[:2]
    ends = [0] if "grams" in case else ENDS
    search = generate if num_beams == 1 else partial(beam_search, num_beams=num_beams)
    ours = search(model, prompts, NEW, rules=rules, eos_ids=ends)
    assert ours == [
        by_transformers(theirs, prompt, num_beams, ends, **options) for prompt in prompts
    ]
    if (kind, case) not in {("translator", "length"), ("translator", "new length")}:
        assert ours != search(model, prompts, NEW, eos_ids=ends)


def test_a_token_outside_the_vocabulary_and_a_negative_number_are_refused(decoder):
    for rules in (TokenRules(suppress=(96,)), TokenRules(forced_bos=-1)):
        with pytest.raises(UserError, match="but vocab_size=96"):
            generate(decoder[0], PROMPTS, 2, rules=rules)
        with pytest.raises(UserError, match="but vocab_size=96"):
            beam_search(decoder[0], PROMPTS, 2, num_beams=2, rules=rules)
    with pytest.raises(UserError, match="min_length=-1 is less than 0"):
        TokenRules(min_length=-1)


def test_ngrams_longer_than_any_text_ban_nothing():
    text = Text(jnp.ones((1, 5), int), jnp.array([4]), jnp.array([3]))
    settings = stack_settings(5, [Sampling()], [TokenRules(no_repeat_ngram_size=2**30)])
    scores_BV = jnp.arange(5.0)[None]
    assert (process(scores_BV, text, settings) == scores_BV).all()
