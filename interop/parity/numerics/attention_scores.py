"""Scores of attention, with one word for what is not seen."""

import numpy as np

SCORES, PROBS = "scores", "probs"

# Implementations hide a key by the least float, by -1e9 or by adding either. Its probability is
# then zero, as it is wherever a score lies so many nats below another.
LEAST, FARTHEST = -1e8, 5e3


def seen_only(scores_BTNS: np.ndarray) -> np.ndarray:
    """The scores, minus infinity for keys that a query does not see.

    A query that sees nothing at all keeps no score.
    """
    best_BTN1 = scores_BTNS.max(-1, keepdims=True)
    hidden_BTNS = (scores_BTNS < LEAST) | (scores_BTNS < best_BTN1 - FARTHEST)
    return np.where(hidden_BTNS, np.float32(-np.inf), scores_BTNS)
