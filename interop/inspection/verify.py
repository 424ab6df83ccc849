"""Proof that a checkpoint survives the way into a model and back: streamed, bit by bit."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.interop.families import Table
from jaxllm.interop.formats.byte_sizes import format_size, parse_size
from jaxllm.interop.formats.file_writer import CHUNK_BYTES, WORKERS, in_threads
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_stored, transfer_tensor
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.table import model_format_of
from jaxllm.interop.loading.checkpoint_dir import read_json
from jaxllm.interop.loading.model_arrays import Parameters, read_checkpoint, read_step
from jaxllm.interop.loading.plan import make_plan
from jaxllm.interop.loading.user_family import open_checkpoint
from jaxllm.interop.saving.export import choose_family, export_tensors, possible_families

# Of a chunk there may be: the original, what went through the model, and their difference.
COPIES = 5


@dataclasses.dataclass(frozen=True)
class VerifiedTensor:
    """What was found of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    sha256: str  # of its bytes in C order
    num_nonfinite: int
    differing_bits: int | None  # None: there is no way back for it
    remark: str = ""  # why there is none

    @property
    def problem(self) -> str | None:
        """What is wrong with it, if anything is."""
        if not self.differing_bits:
            return None
        return f"{self.name}: {self.differing_bits:,} of {8 * self.num_bytes:,} bits differ"


@dataclasses.dataclass(frozen=True)
class Verification:
    """What was found of all tensors; `ok` if no bit differs, from the manifest neither."""

    path: str
    through: str  # the family whose rules they went through
    tensors: tuple[VerifiedTensor, ...]
    changes: tuple[str, ...] = ()  # against the manifest

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def differing_bits(self) -> int:
        """Bits that did not come back."""
        return sum(tensor.differing_bits or 0 for tensor in self.tensors)

    @property
    def num_nonfinite(self) -> int:
        """Numbers that are infinite or not numbers."""
        return sum(tensor.num_nonfinite for tensor in self.tensors)

    @property
    def problems(self) -> list[str]:
        """All that is wrong, each with the tensor's name."""
        found = (tensor.problem for tensor in self.tensors)
        return [*filter(None, found), *self.changes]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def summary(self) -> str:
        """One line."""
        alone = sum(tensor.differing_bits is None for tensor in self.tensors)
        return (
            f"{self.path}: {len(self.tensors)} tensors, {format_size(self.num_bytes)}, "
            f"there and back through {self.through}: {self.differing_bits:,} differing bits"
            + (f", {alone} without a way back" if alone else "")
            + (f", {self.num_nonfinite:,} numbers not finite" if self.num_nonfinite else "")
            + (f", {len(self.changes)} changes since the manifest" if self.changes else "")
        )

    def to_json(self) -> dict[str, Any]:
        """The figures, and those of each tensor."""
        return {
            "ok": self.ok,
            "path": self.path,
            "through": self.through,
            "num_tensors": len(self.tensors),
            "num_bytes": self.num_bytes,
            "differing_bits": self.differing_bits,
            "num_nonfinite": self.num_nonfinite,
            "problems": self.problems,
            "tensors": [dataclasses.asdict(tensor) for tensor in self.tensors],
        }


def verify(
    path: str | Path,
    *,
    step: int | None = None,
    manifest: str | Path | None = None,
    max_ram: int | str = "256MiB",
    rules: Any = None,
) -> Verification:
    """Leads every tensor through the rules into the model's arrays and back, a chunk at a time.

    Args:
        path: a folder of any known family, a native checkpoint, or a run. The arrays of a native
            one go the other way round: into the spelling of a family, and back.
        step: of a run; by default its newest.
        manifest: a file of the tensors' sha256: compared if it exists, and else written.
        max_ram: host memory for tensors in flight: bytes, or a text like "256MiB".
        rules: of a model of your own, as docs/rules.md says; `path` may then be a file.

    Raises:
        CheckpointError: the folder is not a checkpoint, or the manifest is not one.
    """
    path = Path(path)
    if (form := model_format_of(path)) is not None:
        through, pairs = _native_pairs(read_step(form, form.find_step(path, step)), rules)
    elif step is not None:
        raise CheckpointError(f"{path} is not a run, so it has no step {step}")
    else:
        through, pairs = _stored_pairs(path, rules)
    chunk_bytes = max(min(parse_size(max_ram) // (WORKERS * COPIES), CHUNK_BYTES), 1)
    tensors = in_threads(lambda name: _compare(name, pairs[name], chunk_bytes), list(pairs))
    result = Verification(str(path), through, tuple(tensors))
    if manifest is None:
        return result
    return dataclasses.replace(result, changes=tuple(_check_manifest(Path(manifest), tensors)))


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A tensor, and what it is after the way there and back; a remark if there is no way."""

    original: TensorSource
    again: TensorSource | None
    remark: str = ""


def _stored_pairs(path: Path, rules: Any) -> tuple[str, dict[str, _Pair]]:
    """Every stored tensor, copies and ignored ones included."""
    checkpoint = open_checkpoint(path, rules)
    plan = make_plan(checkpoint)
    again = dict(export_tensors(read_checkpoint(checkpoint, plan), plan.table))
    again |= {copy: again[original] for copy, original in plan.table.tied.items()}
    for derived in plan.table.derived:  # an export computes it anew, and may round otherwise
        again.pop(derived.name, None)
    return checkpoint.family.name, {
        name: _Pair(from_stored(tensor), again.get(name), _why_ignored(name, plan.table))
        for name, tensor in checkpoint.tensors.items()
    }


def _why_ignored(name: str, table: Table) -> str:
    reasons = {derived.name: "derived from the config" for derived in table.derived}
    reasons |= table.ignored
    return next((why for pattern, why in reasons.items() if fnmatchcase(name, pattern)), "")


def _native_pairs(parameters: Parameters, rules: Any) -> tuple[str, dict[str, _Pair]]:
    """Every array, through the first family that can say what the model is."""
    families = possible_families(parameters.origin, None, None, rules)
    try:
        family, _, table = choose_family(parameters, families, None)
    except CheckpointError as error:
        remark = " ".join(str(error).split())
        return "none", {name: _Pair(a, None, remark) for name, a in parameters.arrays.items()}
    again = {}
    for rule, sizes in table.bound(parameters.stacks):
        there, back = rule.exporting(sizes), rule.importing(sizes)
        stored = {
            name: transfer_tensor(there, index, parameters.arrays)
            for name, index in there.target.names(sizes)
        }
        for name, index in back.target.names(sizes):
            again[name] = transfer_tensor(back, index, stored)
    return family.name, {n: _Pair(a, again[n]) for n, a in parameters.arrays.items()}


def _compare(name: str, pair: _Pair, chunk_bytes: int) -> VerifiedTensor:
    original, again = pair.original, pair.again
    sha256, num_nonfinite, differing = hashlib.sha256(), 0, 0
    if again is not None and (again.dtype, again.shape) != (original.dtype, original.shape):
        raise CheckpointError(
            f"{name} is {original.dtype}{list(original.shape)}, "
            f"and {again.dtype}{list(again.shape)} after the way there and back"
        )
    returned = iter(()) if again is None else again.payload(chunk_bytes)
    for chunk in original.payload(chunk_bytes):
        sha256.update(chunk)
        num_nonfinite += _count_nonfinite(np.frombuffer(chunk, original.dtype))
        if again is not None:
            differing += _differing_bits(chunk, next(returned))
    return VerifiedTensor(
        name=name,
        dtype=original.dtype.name,
        shape=original.shape,
        num_bytes=original.nbytes,
        sha256=sha256.hexdigest(),
        num_nonfinite=num_nonfinite,
        differing_bits=None if again is None else differing,
        remark=pair.remark if again is None else "",
    )


def _count_nonfinite(numbers: np.ndarray) -> int:
    if numbers.dtype.kind in "biu":
        return 0
    with np.errstate(invalid="ignore"):
        return numbers.size - int(np.count_nonzero(np.isfinite(numbers)))


def _differing_bits(one: memoryview, other: memoryview) -> int:
    a, b = np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)
    return 0 if np.array_equal(a, b) else int(np.bitwise_count(a ^ b).sum(dtype=np.int64))


def _check_manifest(path: Path, tensors: list[VerifiedTensor]) -> Iterator[str]:
    """What is not as a manifest of an earlier day says. Writes it if there is none."""
    found = {
        tensor.name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "sha256": tensor.sha256}
        for tensor in tensors
    }
    if not path.exists():
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps({"tensors": found}, indent=1) + "\n")
        os.replace(partial, path)
        return
    noted = read_json(path).get("tensors")
    if not isinstance(noted, dict) or not all(isinstance(v, Mapping) for v in noted.values()):
        raise CheckpointError(f"{path} is not a manifest of tensors")
    for name in {**noted, **found}:
        if name not in found:
            yield f"{name} is in the manifest and not in the checkpoint"
        elif name not in noted:
            yield f"{name} is in the checkpoint and not in the manifest"
        else:
            for field in ("dtype", "shape", "sha256"):
                if noted[name].get(field) != found[name][field]:
                    yield (
                        f"{name}: {field} is {found[name][field]}, "
                        f"{noted[name].get(field)} in the manifest"
                    )
