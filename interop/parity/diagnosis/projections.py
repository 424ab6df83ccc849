"""Explanations of wrong projections: swapped, transposed or reordered weights, activations."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import jax
import numpy as np

from .evidence import Evidence, Explain, Explanation

HEAD = re.compile(r"(decoder\.|)(lm_head|embed\.attend)")

ACTIVATIONS: Mapping[str, Callable] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "relu squared": lambda x: jax.nn.relu(x) ** 2,
    "sigmoid": jax.nn.sigmoid,
}


def swapped(evidence: Evidence) -> Iterator[Explanation]:
    """The reference's output is the model's output of a sibling projection."""
    for path, other in evidence.model.items():
        parent, _, name = path.rpartition(".")
        is_beside = parent == evidence.parent and path != evidence.path
        is_alike = name.endswith("_proj") and evidence.name.endswith("_proj")
        if is_beside and is_alike and other.shape == evidence.theirs.shape:
            words = f"Looks like {evidence.name} and {name} swapped"
            yield Explanation(other, evidence.theirs, words)


def other_activation(evidence: Evidence) -> Iterator[Explanation]:
    """The MLP has another activation function, or gate and up are swapped."""
    kernel, gate, up = (
        evidence.parameter("kernel"),
        *map(evidence.sibling, ("gate_proj", "up_proj")),
    )
    if evidence.name != "down_proj" or kernel is None or up is None:
        return
    bias = evidence.parameter("bias")
    shift = 0 if bias is None else bias
    for name, act in ACTIVATIONS.items():
        words = f"Looks like a different activation: the reference uses {name}"
        if gate is None:
            yield Explanation(np.asarray(act(up)) @ kernel + shift, evidence.theirs, words)
            continue
        right, turned = (
            np.asarray(act(x)) * y @ kernel + shift for x, y in [(gate, up), (up, gate)]
        )
        both, made = np.stack([evidence.theirs, evidence.ours]), np.stack([right, turned])
        yield Explanation(made, both, "Looks like gate and up swapped")
        yield Explanation(right, evidence.theirs, words)


def other_kernel(evidence: Evidence) -> Iterator[Explanation]:
    """The reference multiplies by the transpose, or by the kernel of another layer."""
    kernel, width = evidence.parameter("kernel"), int(np.prod(evidence.theirs.shape[2:]))
    if kernel is None or kernel.size % width or not len(evidence.theirs):
        return
    shape = evidence.theirs.shape
    bias = evidence.parameter("bias")
    shift = 0 if bias is None else bias.reshape(-1)
    matrix_IO = kernel.reshape(-1, width)
    for x in _inputs(evidence, matrix_IO, shift):
        if matrix_IO.shape[0] == width:
            words = "Looks like a transposed square kernel"
            yield Explanation((x @ matrix_IO.T + shift).reshape(shape), evidence.theirs, words)
        for name in evidence.weights:
            if not _is_like(name, f"{evidence.path}.kernel"):
                continue
            other = evidence.weights[name]
            if other.shape == kernel.shape:
                made = (x @ other.reshape(-1, width) + shift).reshape(shape)
                words = f"Looks like swapped layers: the reference uses {name}"
                yield Explanation(made, evidence.theirs, words)


def _inputs(
    evidence: Evidence, matrix_IO: np.ndarray, shift: np.ndarray | int
) -> Iterator[np.ndarray]:
    """Yields the reference's activation that the model's was computed from, BTI, if found.

    A plain PyTorch module may compute it without recording it, such as attention in one function.
    If the kernel is square, it then follows from the model's output.
    """
    ours = evidence.ours.reshape(*evidence.ours.shape[:2], -1)
    for x in list(evidence.reference.values()):
        flat = x.reshape(*x.shape[:2], -1)
        if flat.shape[-1] == len(matrix_IO) and flat.shape[:2] == ours.shape[:2]:
            probe = flat[:1, -8:] @ matrix_IO + shift
            if np.allclose(probe, ours[:1, -8:], rtol=1e-3, atol=1e-4 * np.abs(probe).max()):
                yield flat
                return
    if matrix_IO.shape[0] == matrix_IO.shape[1]:
        with suppress(np.linalg.LinAlgError):  # a singular kernel loses a part of its input
            outputs = ours.reshape(-1, ours.shape[-1]).astype(np.float64) - shift
            yield np.linalg.solve(matrix_IO.T.astype(np.float64), outputs.T).T.reshape(ours.shape)


def _is_like(name: str, own: str) -> bool:
    """Whether a parameter is the same one in another layer."""
    parts, owns = name.split("."), own.split(".")
    differing = [(a, b) for a, b in zip(parts, owns, strict=False) if a != b]
    return len(parts) == len(owns) and len(differing) == 1 and differing[0][0].isdigit()


def by_embeddings(evidence: Evidence) -> Iterator[Explanation]:
    """The head is tied to the embeddings on one side only."""
    found = HEAD.fullmatch(evidence.path)
    stack = found[1] if found else ""
    table_VD = evidence.weights.get(f"{stack}embed.embedding")
    x_BTD = evidence.reference.get(f"{stack}final_norm")
    if found and table_VD is not None and x_BTD is not None:
        made = x_BTD @ table_VD.T
        yield Explanation(made, evidence.theirs, "Looks like a tied head in the reference only")
        yield Explanation(made, evidence.ours, "Looks like a tied head in the model only")


def relabelled(evidence: Evidence) -> Iterator[Explanation]:
    """The elements of each head are in the order of the other RoPE layout."""
    ours, theirs = evidence.ours, evidence.theirs
    if ours.ndim == 4 and ours.shape[-1] % 2 == 0:
        shape = ours.shape[:-1]
        words = "Looks like half/interleaved RoPE: heads are in the other layout"
        for pairs in ((2, -1), (-1, 2)):
            other = ours.reshape(*shape, *pairs).swapaxes(-1, -2).reshape(ours.shape)
            yield Explanation(other, theirs, words)


def heads_moved(evidence: Evidence) -> Iterator[Explanation]:
    """The two sides have the same heads in different orders."""
    ours, theirs = evidence.ours, evidence.theirs
    if ours.ndim != 4 or evidence.name in ("scores", "probs"):
        return
    apart = np.square(theirs[:1, :, :, None] - ours[:1, :, None]).sum((0, 1, 4))
    order = apart.argmin(1)
    if list(order) != list(range(len(order))):
        words = (
            "Looks like heads in a different order: the reference's are the model's "
            f"{order.tolist()}"
        )
        yield Explanation(ours[:, :, order], theirs, words)


PROJECTIONS: tuple[Explain, ...] = (
    *(swapped, by_embeddings, other_activation, other_kernel, relabelled, heads_moved),
)
