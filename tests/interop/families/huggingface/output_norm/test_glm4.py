"""GLM 4: logits equal those of transformers; weights and config survive the round trip."""

from decoder_family import DecoderFamily
from hf_case import Case

CASES = {"glm4": Case("Glm4", {"pad_token_id": None})}


class TestGlm4(DecoderFamily):
    cases = CASES
