"""PyTorch's grouped matrix product as single products, which run and round in any dtype."""

import itertools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def grouped_product(
    a: "Tensor", b: "Tensor", offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> "Tensor":
    """Returns what `torch._grouped_mm` returns, one product for each group.

    Args:
        a: rows of all groups, SK; or K S, whose groups follow each other along S.
        b: a matrix for each group, GKN; or S N, with groups along S.
        offs: the end of each group along S.
        bias: never given by the backward pass or by transformers.
        out_dtype: ignored; the result has the dtype of `a`.
    """
    import torch

    if bias is not None or offs is None:
        raise NotImplementedError("a grouped product with a bias or without groups")
    spans = itertools.pairwise((0, *offs.tolist()))
    if b.ndim == 3:
        parts = [a[start:stop] @ b[g] for g, (start, stop) in enumerate(spans)]
        rest = a.new_zeros(a.shape[0] - int(offs[-1]), b.shape[-1])
        return torch.cat([*parts, rest])
    return torch.stack([a[:, start:stop] @ b[start:stop] for start, stop in spans])
