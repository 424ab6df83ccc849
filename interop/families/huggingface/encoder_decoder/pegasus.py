"""Pegasus in the Hugging Face format: mBART with sinusoids, whose halves are apart."""

from .bart_like import BartLike
from .marian import FIXED as SINUSOIDS

FIXED = {**SINUSOIDS, "norms.placement": "pre", "norms.final": True}

PEGASUS = BartLike(
    "pegasus",
    "PegasusForConditionalGeneration",
    FIXED,
    start_token=0,
    stores_sinusoids=True,
    scales_after=True,
).family()
