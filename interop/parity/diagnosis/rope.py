"""Explanations of wrong RoPE: layout, direction, theta, scaling, positions, rotary fraction.

Each pair of elements of a head is a complex number, which RoPE multiplies by `e^(i angle)`. The
factors of each side follow from the heads before and after RoPE.
"""

from collections.abc import Iterator

import numpy as np

from jaxllm.numerics.distance import norm

from .evidence import Evidence, Explain, Explanation

LAYOUTS = ("half", "interleaved")


def other_rotation(evidence: Evidence) -> Iterator[Explanation]:
    """The rotation differs: its pairs, direction, angles or fraction; or one side has none."""
    before = evidence.sibling(f"{evidence.name}_proj")
    if not evidence.path.endswith((".attn.q", ".attn.k")) or before is None:
        return
    ours, theirs, scale = evidence.ours, evidence.theirs, _scale(evidence)
    yield Explanation(before, theirs, "Looks like no RoPE in the reference")
    rotated = [_num_rotated(before, x) for x in (ours, theirs)]
    if not rotated[0]:
        yield Explanation(before, ours, "Looks like no RoPE in the model")
        return
    for layout in LAYOUTS:
        own = rotation_factors(before, ours, layout, rotated[0])
        if not _is_near(rotate(before, own, layout), ours):
            continue
        other = next(other for other in LAYOUTS if other != layout)
        words = "Looks like half/interleaved RoPE: the reference rotates the pairs of the {} layout"
        yield Explanation(rotate(before, own, other), theirs, words.format(other))
        words = "Looks like RoPE in the opposite direction"
        yield Explanation(rotate(before, own.conj(), layout), theirs, words)
        if scale is not None:
            for normed in (_normalized(before) * scale, _normalized(before) * (scale + 1)):
                words = "Looks like a missing norm of queries and keys"
                yield Explanation(rotate(normed, own, layout), theirs, words)
        found = rotation_factors(before, theirs, layout, rotated[1])
        if rotated[0] == rotated[1]:
            words = difference(own, found)
        else:
            words = (
                "Looks like a different rotary fraction: the reference rotates "
                f"{rotated[1]} elements of a head, the model {rotated[0]}"
            )
        yield Explanation(rotate(before, found, layout), theirs, words)


def turned_further(evidence: Evidence) -> Iterator[Explanation]:
    """The reference's heads are the model's, rotated or scaled again by position."""
    if not evidence.path.endswith((".attn.q", ".attn.k")):
        return
    ours, theirs = evidence.ours, evidence.theirs
    size = lambda x: np.square(x).sum(-1)  # noqa: E731
    ratio_T = np.sqrt(size(theirs).sum((0, 2)) / size(ours).sum((0, 2)))[None, :, None, None]
    words = "Looks like a different temperature: queries are scaled by position"
    yield Explanation(ours * ratio_T, theirs, words)
    for layout in LAYOUTS:
        words = "Looks like different RoPE angles: theta or its scaling"
        yield Explanation(
            rotate(ours, rotation_factors(ours, theirs, layout), layout), theirs, words
        )


def rotation_factors(
    before: np.ndarray, after: np.ndarray, layout: str, rotated: int | None = None
) -> np.ndarray:
    """Returns the complex factor of each pair at each position, TP: a least-squares fit.

    Args:
        before: heads before RoPE, BTNH.
        after: heads after RoPE, BTNH.
        layout: which elements are pairs, "half" or "interleaved".
        rotated: the number of rotated elements of a head; by default all.
    """
    x, y = (_pairs(z, layout, rotated or z.shape[-1] // 2 * 2) for z in (before, after))
    return (x.conj() * y).sum((0, 2)) / np.square(np.abs(x)).sum((0, 2))


def rotate(x_BTNH: np.ndarray, gains_TP: np.ndarray, layout: str) -> np.ndarray:
    """Multiplies the first pairs of each head by `gains_TP`; leaves the other elements alone."""
    R = 2 * gains_TP.shape[-1]
    z = _pairs(x_BTNH, layout, R) * gains_TP[:, None]
    parts = (z.real, z.imag)
    rotated = (
        np.concatenate(parts, -1)
        if layout == "half"
        else np.stack(parts, -1).reshape(*z.shape[:-1], R)
    )
    return np.concatenate([rotated, x_BTNH[..., R:]], -1).astype(np.float32)


def _pairs(x: np.ndarray, layout: str, rotated: int) -> np.ndarray:
    x = x[..., :rotated].astype(np.float64)
    half = rotated // 2
    return (
        x[..., :half] + 1j * x[..., half:] if layout == "half" else x[..., ::2] + 1j * x[..., 1::2]
    )


def difference(ours_TP: np.ndarray, theirs_TP: np.ndarray) -> str:
    """Describes how the rotation of the reference differs from the model's."""
    ours, theirs = map(frequencies, (ours_TP, theirs_TP))
    if np.allclose(ours, theirs, rtol=1e-4, atol=1e-7):
        shift = np.angle(theirs_TP[0] / ours_TP[0])[0] / ours[0]
        if abs(shift) > 0.5:
            return (
                f"Looks like shifted positions: the reference's are {shift:+.0f} from the model's"
            )
        return "Looks like a different factor of RoPE's cosines and sines"
    bases = theta(theirs), theta(ours)
    if bases[0] is not None and bases[1] is not None:
        return (
            f"Looks like a different theta: {bases[0]:.6g} in the reference, {bases[1]:.6g} in "
            "the model"
        )
    ratios = theirs / ours
    if np.ptp(ratios) < 1e-3 * np.abs(ratios).max():
        return (
            "Looks like linear RoPE scaling: the reference rotates "
            f"{ratios.mean():.4g} times as fast"
        )
    same = int(np.isclose(ratios, 1, rtol=1e-3).sum())
    return f"Looks like a different RoPE scaling: {same} of {len(ratios)} frequencies agree"


def frequencies(gains_TP: np.ndarray) -> np.ndarray:
    """Returns the radians per position of each pair, which must be less than pi."""
    angles_TP = np.unwrap(np.angle(gains_TP), axis=0)
    return (angles_TP[-1] - angles_TP[0]) / max(len(angles_TP) - 1, 1)


def theta(found: np.ndarray) -> float | None:
    """Returns the base of unscaled RoPE frequencies, `theta ** (-j / P)`; None for others."""
    if len(found) < 2 or not (found > 0).all() or abs(found[0] - 1) > 1e-3:
        return None
    rate = -np.log(found[1:]) / np.arange(1, len(found))
    return float(np.exp(rate.mean() * len(found))) if np.ptp(rate) < 5e-3 * rate.mean() else None


def _scale(evidence: Evidence) -> np.ndarray | None:
    return evidence.weights.get(f"{evidence.path}_norm.scale")


def _normalized(x_BTNH: np.ndarray) -> np.ndarray:
    return x_BTNH / np.sqrt(np.square(x_BTNH).mean(-1, keepdims=True) + 1e-6)


def _num_rotated(before: np.ndarray, after: np.ndarray) -> int:
    """Returns the number of rotated elements of a head: those up to the last that changes."""
    off_H = np.square(after - before).sum((0, 1, 2)) > 1e-8 * np.square(before).sum((0, 1, 2))
    last = int(np.flatnonzero(off_H)[-1]) + 1 if off_H.any() else 0
    return last + last % 2


def _is_near(one: np.ndarray, other: np.ndarray) -> bool:
    return norm(one - other) < 1e-3 * norm(other)


ROTATIONS: tuple[Explain, ...] = (other_rotation, turned_further)
