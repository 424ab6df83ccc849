"""Models with an adapter applied: beside the kernels, or merged into them as they are read."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from jaxllm.checkpoint_origin import ADAPTER
from jaxllm.checkpointing.digests import digest_json, part_sums, to_text
from jaxllm.checkpointing.orbax_layout import ADAPTER as OF_RUN
from jaxllm.checkpointing.orbax_layout import read_step
from jaxllm.checkpointing.stored_array import open_arrays
from jaxllm.hub import local_path
from jaxllm.interop.formats import orbax
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_array
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.loading.load import load_pretrained
from jaxllm.interop.loading.model_arrays import ModelArrays, open_model_arrays
from jaxllm.interop.rules.boxes import Box
from jaxllm.layers.adapters.low_rank import factor_dims, split_equation
from jaxllm.lora.attach import FACTORS, find_targets, projections
from jaxllm.lora.config import LoraConfig
from jaxllm.models import Model, build_abstract
from jaxllm.params import (
    from_description,
    named_parameters,
    parameter_shardings,
    with_arrays,
)

from .adapter import Adapter
from .peft_config import read_peft_config
from .peft_reading import read_adapter

GIVE = "give the base (--base)"


def is_adapter(path: Path) -> bool:
    """Whether a path is a folder of PEFT, or a run whose steps are adapters."""
    if path.is_dir() and (path / ADAPTER).is_file():
        return True
    return path.is_dir() and orbax.is_native(path) and OF_RUN in read_step(_step(path)).about


def _step(path: Path, step: int | None = None) -> Path:
    return orbax.find_step(path, step)


def load_adapter(
    path: str | Path,
    base: str | Path | None = None,
    *,
    mesh: Mesh | None = None,
    dtype: Any = None,
    step: int | None = None,
    **reading: Any,
) -> Model:
    """Loads a base with an adapter beside its kernels, as they are trained.

    Args:
        path: a folder of PEFT, or a run with LoRA.
        base: the checkpoint to adapt; by default the one that the adapter names.
        mesh: as for `load_pretrained`.
        dtype: of the base, as for `load_pretrained`; the adapter is float32.
        step: the step of a run; by default the newest.
        reading: `strict` and `allow` of the base, as for `load_pretrained`.

    Raises:
        CheckpointError: the adapter or its base cannot be read, or they do not fit.
    """
    place = local_path(path)
    model = load_pretrained(find_base(place, base), mesh=mesh, dtype=dtype, **reading)
    adapter = open_adapter(place, model, step)
    adapted = adapter.attach(model)
    placed = {} if mesh is None else parameter_shardings(adapted, mesh)
    alone = SingleDeviceSharding(jax.local_devices()[0])
    arrays = {name: v.get_value() for name, v in named_parameters(adapted).items()}
    arrays |= {
        name: jax.device_put(x, placed.get(name, alone)) for name, x in adapter.arrays.items()
    }
    loaded = with_arrays(adapted, arrays)
    loaded.origin = model.origin
    return loaded


def find_base(path: Path, base: str | Path | bool | None, step: int | None = None) -> Path:
    """Returns the base of an adapter: the given path, or else the one that the adapter names.

    Raises CheckpointError if it names none, or one that is not there.
    """
    if not is_adapter(path):
        raise CheckpointError(f"{path} is no adapter, neither of PEFT nor of a run with LoRA")
    if isinstance(base, str | Path):
        return local_path(base)
    if (path / ADAPTER).is_file():
        named = read_peft_config(path).base_model_name_or_path
    else:
        named = read_step(_step(path, step)).about[OF_RUN]["base"]
    if not named:
        raise CheckpointError(f"{path} does not name the model that it adapts: {GIVE}")
    found = local_path(named)
    if not found.exists():
        raise CheckpointError(f"{path} adapts {named}, which is not there: {GIVE}")
    return found


def open_adapter(path: Path, model: Model, step: int | None = None) -> Adapter:
    """Reads an adapter of PEFT or of a run. `model` is its base, with or without weights."""
    if (path / ADAPTER).is_file():
        return read_adapter(path, model)
    folder = _step(path, step)
    about, items = read_step(folder, "run", OF_RUN)
    arrays = open_arrays(folder, about, "model", items["model"])
    given: dict[str, Any] = about["run"]["optimizer"]["lora"]
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    lora = LoraConfig(**plain)
    return Adapter(
        scales=dict.fromkeys(find_targets(model, lora), lora.scale),
        arrays={name: x.read([(0, size) for size in x.shape]) for name, x in arrays.items()},
        base=about[OF_RUN]["base"] or "",
        dropout=lora.dropout,
        rslora=lora.rslora,
    )


def describe_run(path: Path, step: int | None = None) -> Model:
    """Returns the base of a run's adapter, without weights.

    Raises CheckpointError if the run has no adapter.
    """
    if not is_adapter(path) or (path / ADAPTER).is_file():
        raise CheckpointError(f"{path} is not a run with LoRA: it has no adapter to write for PEFT")
    return from_description(read_step(_step(path, step)).about)


def open_merged(
    path: Path, base: str | Path | bool | None = None, step: int | None = None, **reading: Any
) -> ModelArrays:
    """Returns the arrays of a base with an adapter merged in as they are read.

    An array keeps its dtype.

    Args:
        path: a folder of PEFT, or a run with LoRA.
        base: its base; by default the one that it names.
        step: the step of a run; by default the newest.
        reading: how to read the base, as for `open_model_arrays`.

    Raises:
        CheckpointError: the adapter or its base cannot be read, they do not fit, or the base is
            not the one that the run was trained on.
    """
    arrays = open_model_arrays(find_base(path, base, step), **reading)
    model = build_abstract(arrays.config)
    model.origin = arrays.origin
    adapter = open_adapter(path, model, step)
    if not (path / ADAPTER).is_file():
        _check_digest(_step(path, step), arrays, adapter)
    merged = {name: from_array(x) for name, x in adapter.full.items()}
    for name, module in projections(model).items():
        if name in adapter.scales:
            kernel = f"{name}.kernel"
            factors = [adapter.arrays[f"{name}{end}"] for end in FACTORS]
            source, scale = arrays.arrays[kernel], adapter.scales[name]
            merged[kernel] = _merged(source, module.equation, scale, *factors)
    merged = {name: x.astype(arrays.arrays[name].dtype) for name, x in merged.items()}
    own = path if (path / ADAPTER).is_file() else _step(path, step)  # a run may write others
    files = [*arrays.files, *sorted(file for file in own.rglob("*") if file.is_file())]
    return dataclasses.replace(
        arrays,
        arrays={**arrays.arrays, **merged},
        files=tuple(files),
    )


def _merged(
    kernel: TensorSource, equation: str, scale: float, a: np.ndarray, b: np.ndarray
) -> TensorSource:
    """Returns a kernel with the product of two factors added; boxes are computed when read."""
    _, dims, _ = split_equation(equation)
    stacked = "L" * (len(kernel.shape) - len(dims))
    letters, (a_dims, b_dims) = stacked + dims, factor_dims(equation)
    product = f"{stacked}{a_dims},{stacked}{b_dims}->{letters}"

    def read(box: Box) -> np.ndarray:
        along = {letter: slice(*ends) for letter, ends in zip(letters, box, strict=True)}
        parts = [
            x[tuple(along.get(letter, slice(None)) for letter in stacked + own)]
            for x, own in ((a, a_dims), (b, b_dims))
        ]
        delta = np.einsum(product, *parts, dtype=np.float32, optimize=True)
        return np.asarray(kernel.read(box), np.float32) + np.float32(scale) * delta

    return TensorSource(np.dtype(np.float32), kernel.shape, read)


def _check_digest(step: Path, base: ModelArrays, adapter: Adapter) -> None:
    """Raises CheckpointError unless a base has the frozen parameters that a run was trained on."""
    about = read_step(step).about
    dtype = np.dtype(about["run"]["optimizer"]["lora"]["base_dtype"])
    digests: Mapping[str, str] = {
        name: to_text(part_sums((own := x.astype(dtype)).read(own.whole), own.whole, own.shape))
        for name, x in base.arrays.items()
        if name not in adapter.full
    }
    if digest_json(digests) != about[OF_RUN]["digest"]:
        raise CheckpointError(
            f"the base is not the one that {step} was trained on: its frozen parameters differ"
        )
