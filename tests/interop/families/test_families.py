"""Families have unique names and model types, and every Hugging Face family has test cases."""

from encoder_decoder_cases import CASES as ENCODER_DECODERS
from hf_cases import CASES as DECODERS

from jaxllm.interop.families import FAMILIES, variant_of


def test_every_hugging_face_family_has_cases():
    cased = {name.partition("/")[0] for name in (*DECODERS, *ENCODER_DECODERS)}
    # `test_without_head.py` has the case of T5's encoder, `test_multimodal.py` those of parts, and
    # `test_kimi_k2.py` that of a type which transformers has no class of.
    others = {"t5_encoder", "kimi_k2", *(family.name for family in FAMILIES if family.is_part)}
    assert cased == {family.name for family in FAMILIES if family.format == "hf"} - others


def test_names_and_model_types_are_unique():
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    # T5's encoder alone has the config of a whole T5.
    keys = [(f.config_file, f.model_type) for f in FAMILIES if f.name != "t5_encoder"]
    assert len(set(keys)) == len(keys)


def test_of_one_model_type_the_tensors_tell_the_family():
    (t5,) = (family for family in FAMILIES if family.name == "t5")
    assert variant_of(t5, ["shared.weight", "encoder.w", "decoder.w"]) is t5
    assert variant_of(t5, ["shared.weight", "encoder.w"]).name == "t5_encoder"
    assert variant_of(t5, []) is t5
