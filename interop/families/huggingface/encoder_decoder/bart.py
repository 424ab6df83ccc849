"""BART in the Hugging Face format (`model_type: bart`): post-norm, biases everywhere."""

from .bart_like import BartLike

FIXED = {
    "norms.placement": "post",
    "norms.embed": True,
    "norms.final": False,
    "positions.kind": "learned",
    "positions.offset": 2,
}

BART = BartLike(
    "bart",
    "BartForConditionalGeneration",
    FIXED,
    start_token=2,
    with_head=("BartModel",),  # so the released bart-base and bart-large are named
).family()
