"""Shared tests of Hugging Face encoder-decoder families: logits, generation and round trips."""

import dataclasses
import json
from collections.abc import Mapping

import encoder_decoder_case
import jax
import numpy as np
import pytest
import torch
import transformers
from encoder_decoder_case import Case, inputs_of, logits_of_original
from hf_case import stored
from tiers import examples, in_tiers
from tiny import relative_l2

from jaxllm.generation import beam_search, generate
from jaxllm.interop import load_pretrained, save_pretrained
from jaxllm.models import with_scanned_layers
from jaxllm.params import named_parameters
from jaxllm.train import make_mesh

TOLERANCE = 1e-5  # relative L2 of logits, float32

run = jax.jit(encoder_decoder_case.logits_of)


def logits_of(model, inputs):
    """The logits at tokens, without those at padding."""
    return np.asarray(run(model, inputs))[inputs.is_tgt_BT == 1]


# Families that have the modules of these: `make test-exhaustive` runs their plain cases.
COMPOSED = {"mbart", "mt5", "pegasus", "marian"}


def tier_of(name: str) -> str:
    """Returns the tier in which a case runs."""
    family, is_variant = name.partition("/")[0], "/" in name
    if family in COMPOSED:
        return "campaign" if is_variant else "exhaustive"
    return "exhaustive" if is_variant else ""


class EncoderDecoderFamily:
    """The tests of a family; a subclass defines its cases."""

    cases: Mapping[str, Case]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "case" in metafunc.fixturenames:
            params = in_tiers(self.cases, tier_of)
            metafunc.parametrize("case", params, indirect=True, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls, request, tmp_path_factory):
        """A family, a transformers model, its folder, and the JAX model loaded from there."""
        folder = tmp_path_factory.mktemp("family") / "original"
        original = cls.cases[request.param].build()
        original.save_pretrained(folder)
        return request.param.partition("/")[0], original, folder, load_pretrained(folder)

    @pytest.fixture
    def written_as(self, request, case):
        """The model_type that a new config has, which may be of a more general family."""
        name = request.node.callspec.params["case"]
        return self.cases[name].written_as or case[1].config.model_type

    @pytest.fixture(scope="class")
    @classmethod
    def inputs(cls, case):
        return inputs_of(case[1])

    def test_logits_match_transformers(self, case, inputs):
        _, original, _, model = case
        expected = logits_of_original(original, inputs)[inputs.is_tgt_BT == 1]
        assert relative_l2(logits_of(model, inputs), expected) <= TOLERANCE

    @pytest.mark.cases(0, exhaustive=1)
    @pytest.mark.exhaustive
    def test_unscanned_layers_compute_the_same(self, case, inputs):
        model = case[-1]
        listed = with_scanned_layers(model, False)
        assert not listed.config.encoder.scan_layers
        assert relative_l2(logits_of(listed, inputs), logits_of(model, inputs)) <= TOLERANCE

    @pytest.mark.cases(0, exhaustive=1)
    @pytest.mark.exhaustive
    def test_a_sharded_model_computes_the_same(self, case, inputs):
        _, _, folder, model = case
        mesh = make_mesh(fsdp=4, tensor=2)
        sharded = load_pretrained(folder, mesh=mesh)
        split = {
            name
            for name, variable in named_parameters(sharded).items()
            if not variable.get_value().sharding.is_fully_replicated
        }
        assert any("cross_attn" in name for name in split)
        with jax.set_mesh(mesh):
            found = logits_of(sharded, inputs)
        assert relative_l2(found, logits_of(model, inputs)) <= TOLERANCE

    def test_weights_round_trip_bitwise(self, case, tmp_path):
        family, original, folder, model = case
        assert model.origin.family == family
        save_pretrained(model, tmp_path / "out")
        assert stored(tmp_path / "out") == stored(folder)
        again, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            tmp_path / "out", output_loading_info=True
        )
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert not info["mismatched_keys"]
        for name, tensor in again.state_dict().items():
            assert torch.equal(tensor, original.state_dict()[name]), name

    def test_the_config_round_trips_without_its_origin(self, case, inputs, written_as, tmp_path):
        """transformers reads the written config, also if the original fields are dropped."""
        _, original, folder, _ = case
        model = load_pretrained(folder)
        model.origin = None
        save_pretrained(model, tmp_path / "out", format="hf")
        assert load_pretrained(tmp_path / "out").config == model.config
        rebuilt = transformers.AutoModelForSeq2SeqLM.from_pretrained(
            tmp_path / "out", attn_implementation="eager"
        ).eval()
        assert rebuilt.config.model_type == written_as
        expected, found = (logits_of_original(one, inputs) for one in (original, rebuilt))
        np.testing.assert_array_equal(found, expected)

    def test_native_checkpoints_round_trip(self, case, tmp_path):
        model = case[-1]
        save_pretrained(model, tmp_path / "native", format="native")
        again = load_pretrained(tmp_path / "native")
        assert again.config == model.config
        # The checkpoint keeps its own copy of the origin's files.
        kept = str(tmp_path / "native" / "origin")
        assert again.origin == dataclasses.replace(model.origin, directory=kept)
        theirs, ours = named_parameters(again), named_parameters(model)
        assert theirs.keys() == ours.keys()
        for name, variable in theirs.items():
            np.testing.assert_array_equal(variable.get_value(), ours[name].get_value(), name)

    def test_cached_equals_uncached(self, case, inputs):
        """A prompt, then single tokens, with the source encoded once."""
        model = case[-1]
        length, prompt = 40, 5
        tokens = inputs.tgt_BT[:, :length]
        src = {"src_segment_ids": inputs.is_src_BS}
        whole = jax.jit(lambda model: model(inputs.src_BS, tokens, **src).logits)(model)

        @jax.jit
        def start(model):
            source, _ = model.encode(inputs.src_BS, segment_ids=inputs.is_src_BS)
            return model.decode(tokens[:, :prompt], cache=model.init_cache(source, length))

        step = jax.jit(
            lambda model, tokens, positions, cache: model.decode(
                tokens, positions=positions, cache=cache
            )
        )
        out = start(model)
        logits = [out.logits]
        for t in range(prompt, length):
            out = step(model, tokens[:, t : t + 1], np.full((3, 1), t), out.cache)
            logits.append(out.logits)
        assert relative_l2(np.concatenate(logits, axis=1), whole) <= TOLERANCE

    @pytest.mark.cases(0, exhaustive=2)
    @pytest.mark.exhaustive
    @pytest.mark.parametrize("num_beams", examples([1, 3], 3))
    def test_generation_matches_transformers(self, case, inputs, num_beams):
        _, original, _, model = case
        lengths = (30, 12, 1)
        prompts = [row[:n].tolist() for row, n in zip(inputs.src_BS, lengths, strict=True)]
        tokens, is_token = (np.zeros((3, 30), np.int64) for _ in range(2))
        for row, mask, prompt in zip(tokens, is_token, prompts, strict=True):
            row[: len(prompt)], mask[: len(prompt)] = prompt, 1
        expected = original.generate(
            torch.tensor(tokens),
            attention_mask=torch.tensor(is_token),
            max_new_tokens=20,
            do_sample=False,
            num_beams=num_beams,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert (expected[:, 0] == model.config.start_token).all()
        if num_beams == 1:
            found = generate(model, prompts, 20)
        else:
            found = beam_search(model, prompts, 20, num_beams=num_beams)
        assert found == expected[:, 1:].tolist()

    def test_configs_of_both_transformers_versions_are_read(self, case, tmp_path):
        """transformers 5 writes `dtype`; jaxllm writes the `torch_dtype` of 4."""
        model = load_pretrained(case[-2])
        model.origin = None
        save_pretrained(model, tmp_path / "four", format="hf")
        written = json.loads((tmp_path / "four" / "config.json").read_text())
        assert "dtype" not in written
        assert written["torch_dtype"] == "float32"
        assert load_pretrained(tmp_path / "four").config == model.config

    def test_an_unchanged_config_is_exported_field_for_field(self, case, tmp_path):
        save_pretrained(case[-1], tmp_path / "out")
        written, original = (
            json.loads((folder / "config.json").read_text())
            for folder in (tmp_path / "out", case[-2])
        )
        assert written == original
