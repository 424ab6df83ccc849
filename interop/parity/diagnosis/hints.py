"""What a wrong step looks like: known mistakes, each tried by computing what it would make.

Nothing here knows of a family or of what was done to a model: an explanation is what turns our
array into the reference's, or what shows that one of them was made in another way.
"""

import numpy as np

from .arrays import capped, few_tokens, offset, rounded, scaled, scaled_by_token, shifted
from .attention import ATTENTION
from .evidence import Evidence, Explain, first_true
from .norms import NORMS
from .projections import PROJECTIONS


def hint_of(evidence: Evidence) -> str | None:
    """What the step looks like, if it looks like anything known."""
    ours, theirs = evidence.ours, evidence.theirs
    if (bad := int(np.isnan(ours).sum())) and not np.isnan(theirs).any():
        return f"Of {ours.size} numbers {bad} are not a number"
    if evidence.path.endswith(".scores"):
        return first_true(evidence, ATTENTION)
    return first_true(evidence, TABLE) or _of_experts(evidence)


# From the particular to the general: the first that holds is the hint.
TABLE: tuple[Explain, ...] = (
    *(shifted, *PROJECTIONS, *NORMS, *ATTENTION),
    *(offset, scaled, capped, rounded, scaled_by_token, few_tokens),
)


def _of_experts(evidence: Evidence) -> str | None:
    """Which experts' tokens are off, where the router is right."""
    router = evidence.given.get(f"{evidence.path}.router")
    if router is None:
        return None
    off_BT = np.linalg.norm(evidence.ours - evidence.theirs, axis=-1) > (
        10 * evidence.threshold * np.linalg.norm(evidence.theirs, axis=-1)
    )
    ranks_BTE = np.argsort(np.argsort(-router, axis=-1), axis=-1)
    for top_k, expert in np.ndindex(router.shape[-1] + 1, router.shape[-1]):
        if np.array_equal(ranks_BTE[..., expert] < top_k, off_BT) and not off_BT.all():
            return f"The router agrees, but the tokens of expert {expert} are off"
    return "The router agrees: the experts differ, or the weights of their outputs"
