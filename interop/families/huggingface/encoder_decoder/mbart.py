"""mBART in the Hugging Face format (`model_type: mbart`): BART with norms before sublayers."""

from .bart_like import BartLike

FIXED = {
    "norms.placement": "pre",
    "norms.embed": True,
    "norms.final": True,
    "positions.kind": "learned",
    "positions.offset": 2,
}

MBART = BartLike("mbart", "MBartForConditionalGeneration", FIXED).family()
