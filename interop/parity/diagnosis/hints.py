"""Hints on wrong activations: tries known mistakes by computing what each of them would produce.

The hints do not depend on the family. An explanation turns the model's array into the
reference's, or shows that one of the two was computed in another way.
"""

import numpy as np

from .arrays import capped, few_tokens, offset, rounded, scaled, scaled_by_token, shifted
from .attention import ATTENTION
from .evidence import Evidence, Explain, first_true
from .norms import NORMS
from .projections import PROJECTIONS


def hint_of(evidence: Evidence) -> str | None:
    """Returns the likely cause of an activation's error; None if no known mistake explains it."""
    ours, theirs = evidence.ours, evidence.theirs
    if (bad := int(np.isnan(ours).sum())) and not np.isnan(theirs).any():
        return f"{bad} of {ours.size} numbers of the model are NaN"
    if evidence.path.endswith(".scores"):
        return first_true(evidence, ATTENTION)
    return first_true(evidence, TABLE) or _of_experts(evidence)


# Ordered from specific to general: the first explanation that holds is the hint.
TABLE: tuple[Explain, ...] = (
    *(shifted, *PROJECTIONS, *NORMS, *ATTENTION),
    *(offset, scaled, capped, rounded, scaled_by_token, few_tokens),
)


# Explanations that hold at each position by itself.
BY_POSITION: tuple[Explain, ...] = (
    *(*PROJECTIONS, *NORMS),
    *(offset, scaled, capped, rounded, scaled_by_token),
)


def hint_of_sample(evidence: Evidence) -> str | None:
    """Returns what `hint_of` returns, from the activations at some positions.

    Mistakes that show only in neighboring positions, such as those of RoPE, are not tried.
    """
    if np.isnan(evidence.ours).any() and not np.isnan(evidence.theirs).any():
        return "Numbers of the model are NaN"
    if evidence.path.endswith((".scores", ".probs")):
        return None
    return first_true(evidence, BY_POSITION)


def _of_experts(evidence: Evidence) -> str | None:
    """Returns which expert's tokens differ, for a mixture of experts whose router agrees."""
    router = evidence.reference.get(f"{evidence.path}.router")
    if router is None:
        return None
    off_BT = np.linalg.norm(evidence.ours - evidence.theirs, axis=-1) > (
        10 * evidence.threshold * np.linalg.norm(evidence.theirs, axis=-1)
    )
    ranks_BTE = np.argsort(np.argsort(-router, axis=-1), axis=-1)
    for top_k, expert in np.ndindex(router.shape[-1] + 1, router.shape[-1]):
        if np.array_equal(ranks_BTE[..., expert] < top_k, off_BT) and not off_BT.all():
            return f"The router agrees, but the tokens of expert {expert} differ"
    return "The router agrees, so the experts differ, or the weights of their outputs"
