"""Shared tests of Hugging Face decoder families: logits, caches, weight and config round trips."""

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_case import Case, stored, tokens_of
from tiers import in_tiers
from tiny import relative_l2

from jaxllm.generation import Sampling, TokenRules, beam_search, generate
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.interop.families import FAMILIES
from jaxllm.interop.parity.execution.float64 import in_float64
from jaxllm.models import Model, with_scanned_layers

TOLERANCE = 1e-5  # relative L2 of logits, float32
NEW = 16


# Families that differ most in their layers and caches: full, windowed, sparse.
DIVERSE = {"llama", "gemma3_text", "mixtral"}
# Families that consist of parts which others have as well. `make test-exhaustive` runs their plain
# cases, and `make test-campaigns` their variants.
COMPOSED = {
    *("bloom", "cohere", "cwm", "ernie4_5", "exaone4", "falcon", "gemma", "glm", "glm4"),
    *("gpt_bigcode", "gpt_neo", "gptj", "ministral", "ministral3", "olmo", "olmo3", "olmoe", "opt"),
    *("phi", "seed_oss", "stablelm", "starcoder2", "deepseek_v2", "glm4_moe", "minimax_m2"),
    "qwen3_5_text",
}


class Built(NamedTuple):
    """A transformers model, the folder it was saved to, and the JAX model loaded from there."""

    family: str
    original: Any
    folder: Path
    model: Model
    written_as: str
    in_float64: bool


def once(test: Callable) -> Callable:
    """Runs a test only for a family's plain case, and in `make test` only for `DIVERSE` families.

    Tests of layers and caches cover every variant in isolation.
    """
    test.is_for_plain_case = True
    return test


@jax.jit
def logits_of(model, tokens):
    return model(tokens).logits


def tier_of(name: str, *, is_for_plain: bool) -> str:
    """Returns the tier in which a case runs, of a test for all cases or for plain ones only."""
    family, is_variant = name.partition("/")[0], "/" in name
    if family in COMPOSED:
        return "campaign" if is_variant or is_for_plain else "exhaustive"
    return "exhaustive" if is_variant or (is_for_plain and family not in DIVERSE) else ""


class DecoderFamily:
    """The tests of a family; a subclass defines its cases."""

    cases: Mapping[str, Case]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            is_for_plain = getattr(metafunc.function, "is_for_plain_case", False)
            names = [name for name in self.cases if not (is_for_plain and "/" in name)]
            params = in_tiers(names, partial(tier_of, is_for_plain=is_for_plain))
            metafunc.parametrize("case", params, indirect=True, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, request, tmp_path_factory):
        case = cls.cases[request.param]
        folder = tmp_path_factory.mktemp("family") / "original"
        original = case.build()
        original.save_pretrained(folder)
        family = request.param.partition("/")[0]
        model = load_pretrained(folder)
        return Built(family, original, folder, model, case.written_as, case.in_float64)

    def test_logits_match_transformers(self, case):
        original, model = case.original, case.model
        tokens = tokens_of(original)
        if case.in_float64:
            original = copy.deepcopy(original).double()
        with torch.no_grad(), in_float64() if case.in_float64 else nullcontext():
            expected = original(input_ids=torch.tensor(tokens), use_cache=False).logits.numpy()
        assert relative_l2(logits_of(model, tokens), expected) <= TOLERANCE

    @pytest.mark.exhaustive
    @once
    def test_unscanned_layers_compute_the_same(self, case):
        original, model = case.original, case.model
        tokens = tokens_of(original, batch_size=1)
        listed = with_scanned_layers(model, False)
        assert relative_l2(logits_of(listed, tokens), logits_of(model, tokens)) <= TOLERANCE

    def test_weights_round_trip_bitwise(self, case, tmp_path):
        family, original, folder, model, *_ = case
        assert model.origin.family == family
        save_pretrained(model, tmp_path / "out")
        assert stored(tmp_path / "out") == stored(folder)
        again, info = type(original).from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert not info["mismatched_keys"]
        for name, tensor in again.state_dict().items():
            assert torch.equal(tensor, original.state_dict()[name]), name

    def test_the_config_round_trips_without_its_origin(self, case, tmp_path):
        """transformers reads the written config, also if the original fields are dropped."""
        original, written_as = case.original, case.written_as
        model = load_pretrained(case.folder)
        model.origin = None
        save_pretrained(model, tmp_path / "out", format="hf")
        config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
        assert config.model_type == (written_as or original.config.model_type)
        again = load_pretrained(tmp_path / "out")
        assert again.config == model.config
        tokens = tokens_of(original, batch_size=1)
        with torch.no_grad():
            rebuilt = transformers.AutoModelForCausalLM.from_pretrained(
                tmp_path / "out", attn_implementation="eager"
            ).eval()
            expected = original(input_ids=torch.tensor(tokens), use_cache=False).logits
            found = rebuilt(input_ids=torch.tensor(tokens), use_cache=False).logits
        if written_as:  # a fused projection that was split may sum in another order
            assert relative_l2(found, expected) <= 1e-6
        else:
            np.testing.assert_array_equal(found.numpy(), expected.numpy())

    @pytest.mark.exhaustive
    def test_a_new_config_of_the_family_means_the_same(self, case, tmp_path):
        """Its own family writes it, even where a model is written as a more general one."""
        family = next(family for family in FAMILIES if family.name == case.family)
        for file in case.folder.glob("*.safetensors*"):
            (tmp_path / file.name).symlink_to(file)
        written = family.write_config(case.model.config, {})
        (tmp_path / "config.json").write_text(json.dumps(written))
        again = load_pretrained(tmp_path)
        assert (again.origin.family, again.config) == (case.family, case.model.config)
        rebuilt = type(case.original).from_pretrained(tmp_path, attn_implementation="eager").eval()
        tokens = torch.tensor(tokens_of(case.original, batch_size=1))
        with torch.no_grad():
            expected, found = (
                model(input_ids=tokens, use_cache=False).logits
                for model in (case.original, rebuilt)
            )
        np.testing.assert_array_equal(found.numpy(), expected.numpy())

    @once
    def test_cached_equals_uncached(self, case):
        """A prompt, then single tokens: windows, chunks and frequencies work with the cache."""
        original, model = case.original, case.model
        tokens = tokens_of(original)[:, :40]
        whole = logits_of(model, tokens)
        step = jax.jit(
            lambda model, tokens, positions, cache: model(tokens, positions=positions, cache=cache)
        )
        prompt = 5
        out = step(model, tokens[:, :prompt], np.arange(prompt)[None], model.init_cache(2, 40))
        logits = [out.logits]
        for t in range(prompt, 40):
            out = step(model, tokens[:, t : t + 1], np.full((2, 1), t), out.cache)
            logits.append(out.logits)
        assert relative_l2(np.concatenate(logits, axis=1), whole) <= TOLERANCE

    @pytest.mark.exhaustive
    @once
    def test_generation_matches_transformers(self, case):
        """Greedy tokens, beams and processed scores of ragged prompts, with several ends."""
        rows = tokens_of(case.original)
        prompts = [rows[0, :9].tolist(), rows[1, :3].tolist(), rows[0, 9:39].tolist()]
        model = with_scanned_layers(case.model, False)
        free = generate(model, prompts, NEW)
        ends = [free[0][NEW // 2], free[1][NEW // 3]]

        def theirs(**options) -> list[list[int]]:
            return [self.by_transformers(case.original, prompt, **options) for prompt in prompts]

        assert free == theirs()
        ended = generate(model, prompts, NEW, eos_ids=ends)
        assert ended == theirs(eos_token_id=ends)
        processed = generate(
            model,
            prompts,
            NEW,
            eos_ids=ends,
            sampling=Sampling(repetition_penalty=1.3),
            rules=TokenRules(no_repeat_ngram_size=3, min_new_tokens=4),
        )
        settings = {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3, "min_new_tokens": 4}
        assert processed == theirs(eos_token_id=ends, **settings)
        beams = beam_search(model, prompts, NEW, num_beams=3, eos_ids=ends)
        assert beams == theirs(eos_token_id=ends, num_beams=3)

    @staticmethod
    def by_transformers(original: Any, prompt: list[int], **options: Any) -> list[int]:
        tokens = torch.tensor([prompt])
        found = original.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=NEW,
            do_sample=False,
            pad_token_id=0,
            **{"eos_token_id": None, **options},
        )[0, len(prompt) :].tolist()
        ends = options.get("eos_token_id", ())
        count = next((i + 1 for i, token in enumerate(found) if token in ends), None)
        return found[:count]

    def test_configs_of_both_transformers_versions_are_read(self, case, tmp_path):
        """transformers 5 writes `rope_parameters` and `dtype`; jaxllm writes the fields of 4."""
        model = load_pretrained(case.folder)
        model.origin = None
        save_pretrained(model, tmp_path / "four", format="hf")
        written = json.loads((tmp_path / "four" / "config.json").read_text())
        assert "rope_parameters" not in written
        assert load_pretrained(tmp_path / "four").config == model.config

    def test_an_unchanged_config_is_exported_field_for_field(self, case, tmp_path):
        save_pretrained(case.model, tmp_path / "out")
        written, original = (
            json.loads((folder / "config.json").read_text())
            for folder in (tmp_path / "out", case.folder)
        )
        assert written == original
