"""M2M-100 and NLLB in the Hugging Face format: mBART with the sinusoids of tensor2tensor."""

from .bart_like import BartLike

FIXED = {
    "norms.placement": "pre",
    "norms.embed": False,
    "norms.final": True,
    "positions.kind": "sinusoidal",
    "positions.waves": "tensor2tensor",
}

M2M_100 = BartLike(
    "m2m_100",
    "M2M100ForConditionalGeneration",
    FIXED,
    activation="relu",
    is_scaled=True,
    start_token=2,
    counts_from_padding=True,
).family()
