"""Router flips: tokens that the two sides send to different experts."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxllm.interop.parity.report.activation_rows import RouterFlips

ROUTER = ".router"


def flips(
    ours: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    others: Mapping[str, Sequence[np.ndarray]],
    noise: Mapping[str, float],
    top_k: int,
) -> list[RouterFlips]:
    """Returns the routers, in layer order, that select other experts for some tokens.

    Args:
        ours: scores that the JAX model chooses by, BTE, by the router's path: mostly its logits.
        reference: scores of the reference.
        others: scores of the reference with simulated rounding.
        noise: how far off a single score may be, by the router's path.
        top_k: the number of experts per token.
    """
    found = []
    for path, logits_BTE in reference.items():
        if not path.endswith(ROUTER):
            continue
        is_other_BT = _flipped(ours[path], logits_BTE, top_k)
        by_noise = max(int(_flipped(x, logits_BTE, top_k).sum()) for x in others[path])
        if is_other_BT.any() or by_noise:
            margins = _margin(logits_BTE, top_k)[is_other_BT]
            margin = float(margins.max()) if margins.size else 0.0
            is_tie = margin <= 2 * noise[path]
            found.append(RouterFlips(path, int(is_other_BT.sum()), margin, by_noise, is_tie))
    return found


def _flipped(ours_BTE: np.ndarray, theirs_BTE: np.ndarray, top_k: int) -> np.ndarray:
    chosen = (
        np.sort(np.argsort(-x, axis=-1)[..., :top_k], axis=-1) for x in (ours_BTE, theirs_BTE)
    )
    one, other = chosen
    return np.asarray(np.any(one != other, axis=-1))


def _margin(logits_BTE: np.ndarray, top_k: int) -> np.ndarray:
    """Returns the gap between the last selected logit and the next one, BT."""
    descending = -np.sort(-logits_BTE, axis=-1)
    if top_k == descending.shape[-1]:
        return np.full(descending.shape[:-1], np.inf)
    return descending[..., top_k - 1] - descending[..., top_k]
