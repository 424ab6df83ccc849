"""Explanations of wrong norms: scale, kind and eps."""

from collections.abc import Iterator

import numpy as np

from .evidence import Evidence, Explain, Explanation


def plus_one(evidence: Evidence) -> Iterator[Explanation]:
    """Only one of the two sides adds one to the scale parameter."""
    ours, theirs, scale = evidence.ours, evidence.theirs, evidence.parameter("scale")
    if scale is not None:
        words = "Looks like norm +1: the reference scales by one {} than the model"
        yield Explanation(ours * (scale + 1) / scale, theirs, words.format("more"))
        for less in ((scale - 1) / scale, scale / (scale + 1)):
            yield Explanation(ours * less, theirs, words.format("less"))


def other_scale(evidence: Evidence) -> Iterator[Explanation]:
    """The reference uses the scale of another norm of the model."""
    ours, theirs, scale = evidence.ours, evidence.theirs, evidence.parameter("scale")
    if scale is None:
        return
    for name in evidence.weights:
        if name.endswith(".scale") and name != f"{evidence.path}.scale":
            other = evidence.weights[name]
            words = f"Looks like swapped norms: the reference uses {name}"
            if other.shape == scale.shape:
                yield Explanation(ours * other / scale, theirs, words)


def centered(evidence: Evidence) -> Iterator[Explanation]:
    """The reference has a LayerNorm where the model has an RMSNorm."""
    ours, theirs, scale = evidence.ours, evidence.theirs, evidence.parameter("scale")
    if scale is not None and evidence.parameter("bias") is None:
        h = ours / scale
        h = (h - h.mean(-1, keepdims=True)) / h.std(-1, keepdims=True)
        words = "Looks like a LayerNorm in the reference where the model has an RMSNorm"
        yield Explanation(h * scale, theirs, words)


def other_eps(evidence: Evidence) -> Iterator[Explanation]:
    """The eps differs: each token is scaled by its own factor, the smallest tokens the most.

    If `a` is the mean square of the normalized token, then `(1 - a) / a` is eps divided by the mean
    square of the input.
    """
    scale = evidence.parameter("scale")
    if scale is None:
        return
    ours, theirs = (x.astype(np.float64) / scale for x in (evidence.ours, evidence.theirs))
    ratio = (ours * theirs).sum(-1, keepdims=True) / np.square(ours).sum(-1, keepdims=True)
    eps = [(1 - a) / a for a in (np.square(x).mean(-1) for x in (ours, theirs))]
    times = float(np.median(eps[1] / eps[0]))
    if np.isfinite(times) and times > 0 and abs(np.log(times)) > 0.1:
        words = (
            f"Looks like a different eps: the reference's is about {times:.2g} times the model's"
        )
        yield Explanation(ours * ratio, theirs, words)


NORMS: tuple[Explain, ...] = (plus_one, other_scale, centered, other_eps)
