"""A PyTorch model of a user's own as a reference: dressed as one of transformers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from jaxllm.interop.mismatch import reason_to_ignore
from jaxllm.interop.planning import take_account
from jaxllm.interop.tensors import CheckpointError
from jaxllm.interop.user_rules import UserFamily, family_of, open_checkpoint

# Generating is what transformers adds to a model; a plain one only computes.
NOT_PLAIN = ("generate",)


def load_plain(path: Path, rules: Any) -> Any:
    """The model that the rules' `reference` makes, in float32, with the weights at `path`.

    Raises CheckpointError if there is none, or its state is not what is stored.
    """
    import torch

    family = family_of(rules)
    if family.reference is None:
        raise CheckpointError(f"{family.name} defines no reference, the model to compare with")
    checkpoint = open_checkpoint(path, rules)
    table = take_account(checkpoint).table
    module = family.reference(dict(checkpoint.config)).float()
    state = {name: torch.from_numpy(_plain(t.open())) for name, t in checkpoint.tensors.items()}
    try:
        absent, surplus = module.load_state_dict(state, strict=False)
    except RuntimeError as error:  # of shapes, all in one
        raise CheckpointError(str(error).splitlines(), f"{family.name}: reference") from None
    stored = {tensor.data_ptr() for n, tensor in module.state_dict().items() if n in state}
    problems = [
        *(
            f"the reference has {name}, which is not stored"
            for name in absent
            if module.state_dict()[name].data_ptr() not in stored  # not a copy of what is
        ),
        *(
            f"{name} is stored, which the reference does not have"
            for name in surplus
            if reason_to_ignore(table, name) is None
        ),
    ]
    if problems:
        raise CheckpointError(problems, path)
    return _dressed(module, family, checkpoint.config)


def _plain(array: np.ndarray) -> np.ndarray:
    """A copy in float32 of what has another float's dtype, which PyTorch may not take."""
    is_float = array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16
    return np.array(array, np.float32 if is_float else array.dtype)


def _dressed(module: Any, family: UserFamily, fields: dict[str, Any]) -> Any:
    """The module with what a comparison asks of models of transformers."""
    import torch

    class Plain(type(module)):  # type: ignore[misc]
        jaxllm_family = family
        config = SimpleNamespace(_attn_implementation="eager", to_dict=lambda: dict(fields))
        _supports_sdpa = False
        device = "cpu"

        def set_attn_implementation(self, name: str) -> None:
            """It has its own."""

        def get_input_embeddings(self) -> Any:
            """The first table of embeddings."""
            tables = (m for m in self.modules() if isinstance(m, torch.nn.Embedding))
            return next(tables, None)

        def get_output_embeddings(self) -> None:
            """They go by their name."""

        def forward(self, input_ids: Any, **_: Any) -> Any:
            """The logits, with the name that transformers gives them."""
            out = super().forward(input_ids)
            return SimpleNamespace(logits=getattr(out, "logits", out))

    Plain.__name__ = type(module).__name__
    module.__class__ = Plain
    return module.eval()
