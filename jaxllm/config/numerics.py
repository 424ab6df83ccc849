"""Config of dtypes and parameter initialization, and the choices of rematerialization."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

from jaxllm.errors import UserError

from .checks import check_fields, check_not_negative

# Of parameters and of activations.
Dtype = Literal["float32", "bfloat16", "float16"]
# In which devices sum gradients.
ReduceDtype = Literal["float32", "bfloat16"]
# In which projections multiply: that of activations, or 8 bits with scales.
MatmulDtype = Literal["dtype", "float8"]
# What the backward pass recomputes: nothing, all but outputs of matmuls or of attention, all, or
# all with the layers' inputs kept in the memory of the host.
Remat = Literal["none", "dots", "attention", "full", "offload"]
# Initialization of kernels: normal with `std`, or uniform within sqrt(6 / (fan in + fan out))
# (Glorot and Bengio, 2010). Embeddings are always normal, biases 0, norms 1.
Init = Literal["normal", "xavier"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumericsConfig:
    """Dtypes of parameters and activations; norms, softmax and logits are always float32."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    param_dtype: Dtype = "float32"
    dtype: Dtype = "float32"  # of activations
    # In which devices sum the gradients of kernels; PyTorch's FSDP calls it so too. bfloat16 moves
    # half the bytes, and rounds what each device has before it is summed.
    reduce_dtype: ReduceDtype = "float32"
    # In which the projections of attention and MLPs multiply; float8 needs bfloat16 activations.
    # Experts, routers and heads multiply in `dtype`.
    matmul_dtype: MatmulDtype = "dtype"
    # Whether float16 activations are added up in float32, in which their sum has no limit.
    wide_residual: bool = False

    @property
    def residual_dtype(self) -> Dtype:
        """Dtype of the residual stream."""
        return "float32" if self.wide_residual and self.dtype == "float16" else self.dtype

    def __post_init__(self) -> None:
        check_fields(self, "numerics.")
        if self.reduce_dtype == "bfloat16" != self.dtype:
            raise UserError(
                f"numerics.reduce_dtype='bfloat16' needs numerics.dtype='bfloat16', not "
                f"{self.dtype!r}: gradients of wider activations are summed in float32"
            )
        if self.matmul_dtype == "float8" and self.dtype != "bfloat16":
            raise UserError(
                f"numerics.matmul_dtype='float8' needs numerics.dtype='bfloat16', not "
                f"{self.dtype!r}: what is kept more exactly is not to be rounded to 8 bits"
            )


def check_dtype(dtype: object) -> None:
    """Raises UserError if an argument `dtype=` is not a dtype of parameters; None is allowed."""
    if dtype is not None:
        check_dtype_name(dtype, get_args(Dtype))


def check_dtype_name(dtype: object, known: Sequence[str]) -> None:
    """Raises UserError if a dtype is not one of the names; says so if it is no name at all."""
    if not isinstance(dtype, str):
        raise UserError(
            f"dtype={dtype!r} is not the name of a dtype: give one of {', '.join(known)} as text"
        )
    if dtype not in known:
        raise UserError(f"dtype={dtype!r} is not one of {', '.join(known)}")


def dtype_fields(dtype: Dtype) -> dict[str, Dtype]:
    """Returns the fields, by dotted name, of a model whose parameters and activations have it."""
    return {"numerics.param_dtype": dtype, "numerics.dtype": dtype}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Initial values of the parameters."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    kind: Init = "normal"
    std: float = 0.02

    def __post_init__(self) -> None:
        check_fields(self, "init.")
        check_not_negative(self, "std", prefix="init.")
