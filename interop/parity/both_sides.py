"""Loads both sides of a comparison from one checkpoint: the PyTorch module and the JAX model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from jaxllm.checkpoint_origin import ADAPTER
from jaxllm.errors import MissingPackageError, UserError
from jaxllm.interop.adapters.merging import find_base, is_adapter, load_adapter
from jaxllm.interop.families import Family
from jaxllm.interop.families.gguf.translate import is_gguf
from jaxllm.interop.formats.quantized.codecs import CONFIG
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.table import model_format_of
from jaxllm.interop.loading.checkpoint_dir import (
    check_is_folder,
    open_known_checkpoint,
    read_family,
)
from jaxllm.interop.loading.lazy_model import open_pretrained
from jaxllm.interop.loading.load import load_pretrained
from jaxllm.interop.reference.transformers_models import require_torch
from jaxllm.models import Model
from jaxllm.storage.paths import check_is_utf8

from .alignment.plain_modules import load_plain
from .alignment.references.overrides import environment, no_progress_bars
from .memory.array_store import ArrayStore, in_memory, parameters_on
from .numerics.precision import FLOAT32


def open_both(
    path: Path,
    rules: Any = None,
    model: Model | None = None,
    store: ArrayStore = in_memory,
    dtype: str = FLOAT32.dtype,
    strict: bool = True,
    allow: Sequence[str] = (),
) -> tuple[Any, Model]:
    """Loads a checkpoint as a PyTorch module and as a JAX model, unless `model` is given.

    Of an adapter, the PyTorch module is PEFT's and its base that which the adapter names. The
    arguments are those of `check_checkpoint`.
    """
    if is_adapter(path):
        _check_adapter(path, store, dtype, rules)
        return _open_adapted(path, model, strict, allow)
    family = None if rules is not None else _family_of(path)
    require_torch()
    import torch

    if model is None:
        load = load_pretrained if store is in_memory else open_pretrained
        model = load(path, dtype=dtype, rules=rules, strict=strict, allow=allow)
    if family is not None and family.reference is None:
        return _load_reference(path, family.class_of(model.config), store, dtype), model
    reference = load_plain(path, rules, store, strict=strict, allow=allow)
    for parameter in reference.parameters() if dtype != FLOAT32.dtype else ():
        parameter.data = parameter.data.to(getattr(torch, dtype))
    return reference, model


def _check_adapter(path: Path, store: ArrayStore, dtype: str, rules: Any) -> None:
    """Raises UserError for options that an adapter does not have, and for that of a run."""
    if not (path / ADAPTER).is_file():
        raise UserError(
            f"{path} is a run with LoRA: `jaxllm convert {path} NEW --to peft` writes the adapter "
            "as a folder that PyTorch reads, too"
        )
    given = {"scratch": store is not in_memory, "dtype": dtype != FLOAT32.dtype}
    given["rules"] = rules is not None
    if wrong := [name for name, is_given in given.items() if is_given]:
        raise UserError(
            f"{path} is an adapter, which is compared in memory and in float32, without "
            f"{', '.join(wrong)}: merge it with `jaxllm convert --merge` to compare otherwise"
        )


def _open_adapted(
    path: Path, model: Model | None, strict: bool, allow: Sequence[str]
) -> tuple[Any, Model]:
    """Loads a PeftModel of an adapter and its base, and the same as a JAX model."""
    try:
        import peft
    except ImportError:
        raise MissingPackageError(f"{path} is an adapter of PEFT: install peft") from None
    reference, _ = open_both(find_base(path, None), strict=strict, allow=allow)
    with no_progress_bars():
        adapted = peft.PeftModel.from_pretrained(reference, str(path), is_trainable=True)
    return adapted, load_adapter(path, dtype="float32") if model is None else model


def _family_of(path: Path) -> Family:
    """Returns the family of a checkpoint folder; rejects folders that PyTorch cannot run."""
    if not is_gguf(path):
        check_is_folder(path)
    if model_format_of(path) is None:
        family, _ = read_family(path)
        if family.format == "hf":
            return open_known_checkpoint(path).family
        if family.reference is not None:
            return family
    raise CheckpointError(
        f"{path} has no config.json of a model that PyTorch can run: "
        f"`jaxllm convert {path} NEW --to hf` writes a folder that has one"
    )


def _load_reference(path: Path, name: str, store: ArrayStore, dtype: str) -> Any:
    """Loads the model with a class of transformers, its parameters kept in the array store."""
    import torch
    import transformers

    check_is_utf8(path, "transformers")
    with no_progress_bars(), nullcontext() if store is in_memory else _one_by_one(store):
        loaded: Any = getattr(transformers, name).from_pretrained(
            path.parent if is_gguf(path) else path,
            **({"gguf_file": path.name} if is_gguf(path) else {}),
            dtype=getattr(torch, dtype),
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
        )
    reference, loading = loaded
    if hasattr(reference.config, CONFIG):  # decoded by now, which the level of weights checks
        del reference.config.quantization_config
    if dtype == FLOAT32.dtype:  # beside quantized tensors transformers leaves others as stored
        for parameter in filter(torch.is_floating_point, reference.parameters()):
            parameter.data = parameter.data.float()
    # transformers initializes missing tensors at random and only warns.
    if absent := sorted(map(str, {*loading["missing_keys"], *loading["mismatched_keys"]})):
        reason = "is missing or has another shape than transformers expects"
        raise CheckpointError([f"{name} {reason}" for name in absent], path)
    return reference


@contextmanager
def _one_by_one(store: ArrayStore) -> Iterator[None]:
    """Makes transformers store each parameter on `store` before it reads the next."""
    with environment("HF_DEACTIVATE_ASYNC_LOAD", "1"), parameters_on(store):
        yield
