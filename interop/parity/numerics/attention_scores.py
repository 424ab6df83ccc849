"""Attention scores with one convention for masked keys: minus infinity."""

import numpy as np

SCORES, PROBS = "scores", "probs"

# Implementations mask a key with the smallest float, with -1e9, or by adding one of them. The
# probability of a score below LEAST, or more than FARTHEST nats below the best one, is zero.
LEAST, FARTHEST = -1e8, 5e3


def seen_only(scores_BTNS: np.ndarray) -> np.ndarray:
    """Returns the scores with minus infinity at masked keys.

    A query that sees no key at all has minus infinity everywhere.
    """
    best_BTN1 = scores_BTNS.max(-1, keepdims=True)
    hidden_BTNS = (scores_BTNS < LEAST) | (scores_BTNS < best_BTN1 - FARTHEST)
    return np.where(hidden_BTNS, np.float32(-np.inf), scores_BTNS)
