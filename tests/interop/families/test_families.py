"""Families have unique names and model types, and every Hugging Face family has test cases."""

from encoder_decoder_cases import CASES as ENCODER_DECODERS
from hf_cases import CASES as DECODERS

from jaxllm.interop.families import FAMILIES


def test_every_hugging_face_family_has_cases():
    cased = {name.partition("/")[0] for name in (*DECODERS, *ENCODER_DECODERS)}
    assert cased == {family.name for family in FAMILIES if family.format == "hf"}


def test_names_and_model_types_are_unique():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    keys = [(family.config_file, family.model_type) for family in FAMILIES]
    assert len(set(keys)) == len(keys)
