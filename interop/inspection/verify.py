"""Verifies that a checkpoint survives the round trip through a model, bit by bit, streamed."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.hub import local_path
from jaxllm.interop.families import RuleTable
from jaxllm.interop.formats.byte_sizes import format_size, parse_size
from jaxllm.interop.formats.file_writer import CHUNK_BYTES, WORKERS, in_threads
from jaxllm.interop.formats.lazy_tensor import TensorSource, from_stored, transfer_tensor
from jaxllm.interop.formats.stored_tensor import CheckpointError
from jaxllm.interop.formats.table import model_format_of
from jaxllm.interop.loading.checkpoint import open_checkpoint
from jaxllm.interop.loading.checkpoint_dir import Checkpoint, read_json
from jaxllm.interop.loading.model_arrays import ModelArrays, arrays_of_checkpoint, arrays_of_native
from jaxllm.interop.loading.plan import make_plan
from jaxllm.interop.loading.tied_tensors import make_checked_plan
from jaxllm.interop.saving.export import choose_family, export_tensors, possible_families
from jaxllm.storage.whole_file import write_whole

# Copies of a chunk that may be in memory: the original, its round trip and their difference.
COPIES = 5


@dataclasses.dataclass(frozen=True)
class VerifiedTensor:
    """The result for one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    sha256: str  # of its bytes in C order
    num_nonfinite: int
    differing_bits: int | None  # None: the tensor has no round trip
    remark: str = ""  # why it has none
    damage: str = ""  # why its bits are not those that were written; empty if they are

    @property
    def problem(self) -> str | None:
        """A message if bits differ or are damaged, else None."""
        if self.damage:
            return self.damage
        if not self.differing_bits:
            return None
        return f"{self.name}: {self.differing_bits:,} of {8 * self.num_bytes:,} bits differ"


@dataclasses.dataclass(frozen=True)
class Verification:
    """The result for all tensors; `ok` if no bit differs and the manifest, if any, matches."""

    path: str
    through: str  # the family whose rules were used
    tensors: tuple[VerifiedTensor, ...]
    changes: tuple[str, ...] = ()  # since the manifest was written
    damage: tuple[str, ...] = ()  # of other arrays, such as the moments of an optimizer

    @property
    def num_bytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def differing_bits(self) -> int:
        """The number of bits that differ after the round trip."""
        return sum(tensor.differing_bits or 0 for tensor in self.tensors)

    @property
    def num_nonfinite(self) -> int:
        """The number of infinities and NaNs."""
        return sum(tensor.num_nonfinite for tensor in self.tensors)

    @property
    def problems(self) -> list[str]:
        """All differences, one message per tensor."""
        found = (tensor.problem for tensor in self.tensors)
        return [*filter(None, found), *self.damage, *self.changes]

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    @property
    def summary(self) -> str:
        """The result in one line."""
        skipped = sum(tensor.differing_bits is None for tensor in self.tensors)
        damaged = sum(bool(tensor.damage) for tensor in self.tensors) + len(self.damage)
        skipped -= sum(bool(tensor.damage) for tensor in self.tensors)
        return (
            f"{self.path}: {len(self.tensors)} tensors, {format_size(self.num_bytes)}, "
            f"round trip through {self.through}: {self.differing_bits:,} differing bits"
            + (f", {skipped} without a round trip" if skipped else "")
            + (f", {self.num_nonfinite:,} non-finite numbers" if self.num_nonfinite else "")
            + (f", {damaged} damaged arrays" if damaged else "")
            + (f", {len(self.changes)} changes since the manifest" if self.changes else "")
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the totals and the results of each tensor as JSON values."""
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
    strict: bool = True,
    allow: Sequence[str] = (),
) -> Verification:
    """Maps every tensor to the model's arrays and back by the rules, and counts differing bits.

    Tensors are streamed in chunks. Every array of a native checkpoint, also of the optimizer, is
    compared with the digest that was written with it.

    Args:
        path: a folder of any known family, a native checkpoint, or a run. Arrays of a native
            checkpoint go the other way: to the format of a family and back.
        step: the step of a run; by default the newest.
        manifest: a JSON file of the tensors' sha256: compared if it exists, else written.
        max_ram: host memory for tensors in flight, in bytes or as a string like "256MiB".
        rules: rules of your own, as described in docs/rules.md; `path` may then be a file.
        strict: as for `load_pretrained`.
        allow: as for `load_pretrained`.

    Raises:
        CheckpointError: the folder is not a checkpoint, or the manifest is invalid.
    """
    path, damage = local_path(path), ()
    if (form := model_format_of(path)) is not None:
        folder = form.find_step(path, step)
        through, pairs = _native_pairs(arrays_of_native(form, folder), rules)
        damage = tuple(form.find_damage(folder))
    elif step is not None:
        raise CheckpointError(f"{path} is not a run, so it has no step {step}")
    else:
        through, pairs = _stored_pairs(open_checkpoint(path, rules, strict=strict, allow=allow))
    chunk_bytes = max(min(parse_size(max_ram) // (WORKERS * COPIES), CHUNK_BYTES), 1)
    tensors = in_threads(lambda name: _compare(name, pairs[name], chunk_bytes), list(pairs))
    result = Verification(str(path), through, tuple(tensors), damage=damage)
    if manifest is None:
        return result
    return dataclasses.replace(result, changes=tuple(_check_manifest(Path(manifest), tensors)))


@dataclasses.dataclass(frozen=True)
class _Pair:
    """A tensor and its round trip, or a remark on why it has none."""

    original: TensorSource
    again: TensorSource | None
    remark: str = ""


def _stored_pairs(checkpoint: Checkpoint) -> tuple[str, dict[str, _Pair]]:
    """Pairs every stored tensor with its round trip, including copies and ignored tensors."""
    try:
        plan = make_checked_plan(checkpoint)
    except CheckpointError:
        plan = make_plan(checkpoint)  # bits of copies that differ are counted
    again = dict(export_tensors(arrays_of_checkpoint(checkpoint, plan), plan.table))
    again |= {copy: again[original] for copy, original in plan.table.tied.items()}
    again |= {name: from_stored(checkpoint.tensors[name]) for name in plan.carried}
    for derived in plan.table.derived:  # exports recompute it and may round differently
        again.pop(derived.name, None)
    return checkpoint.family.name, {
        name: _Pair(from_stored(tensor), again.get(name), _why_ignored(name, plan.table))
        for name, tensor in checkpoint.tensors.items()
    }


def _why_ignored(name: str, table: RuleTable) -> str:
    reasons = {derived.name: "derived from the config" for derived in table.derived}
    reasons |= table.ignored
    return next((why for pattern, why in reasons.items() if fnmatchcase(name, pattern)), "")


def _native_pairs(model: ModelArrays, rules: Any) -> tuple[str, dict[str, _Pair]]:
    """Pairs every array with its round trip through the first family that supports the model."""
    families = possible_families(model.origin, None, None, rules)
    try:
        family, _, table = choose_family(model, families, None)
    except CheckpointError as error:
        remark = " ".join(str(error).split())
        return "none", {name: _Pair(a, None, remark) for name, a in model.arrays.items()}
    again = {}
    for rule, sizes in table.bound(model.stacks):
        there, back = rule.exporting(sizes), rule.importing(sizes)
        stored = {
            name: transfer_tensor(there, index, model.arrays)
            for name, index in there.target.names(sizes)
        }
        for name, index in back.target.names(sizes):
            again[name] = transfer_tensor(back, index, stored)
    return family.name, {n: _Pair(a, again[n]) for n, a in model.arrays.items()}


def _compare(name: str, pair: _Pair, chunk_bytes: int) -> VerifiedTensor:
    original, again = pair.original, pair.again
    sha256, num_nonfinite, differing, damage = hashlib.sha256(), 0, 0, ""
    if again is not None and (again.dtype, again.shape) != (original.dtype, original.shape):
        raise CheckpointError(
            f"{name} is {original.dtype}{list(original.shape)}, "
            f"but {again.dtype}{list(again.shape)} after the round trip"
        )
    returned = iter(()) if again is None else again.payload(chunk_bytes)
    try:
        for chunk in original.payload(chunk_bytes):
            with chunk:
                sha256.update(chunk)
                num_nonfinite += _count_nonfinite(np.frombuffer(chunk, original.dtype))
                if again is not None:
                    with next(returned) as other:
                        differing += _differing_bits(chunk, other)
    except CheckpointError as error:
        again, damage = None, "; ".join(error.problems)
    return VerifiedTensor(
        name=name,
        dtype=original.dtype.name,
        shape=original.shape,
        num_bytes=original.nbytes,
        sha256=sha256.hexdigest(),
        num_nonfinite=num_nonfinite,
        differing_bits=None if again is None else differing,
        remark=pair.remark if again is None else "",
        damage=damage,
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
    """Yields the differences from an earlier manifest; writes the manifest if there is none."""
    found = {
        tensor.name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "sha256": tensor.sha256}
        for tensor in tensors
    }
    if not path.exists():
        write_whole(path, json.dumps({"tensors": found}, indent=1) + "\n")
        return
    recorded = read_json(path).get("tensors")
    if not isinstance(recorded, dict) or not all(isinstance(v, Mapping) for v in recorded.values()):
        raise CheckpointError(f"{path} is not a manifest written by verify")
    for name in {**recorded, **found}:
        if name not in found:
            yield f"{name} is in the manifest but not in the checkpoint"
        elif name not in recorded:
            yield f"{name} is in the checkpoint but not in the manifest"
        else:
            for field in ("dtype", "shape", "sha256"):
                if recorded[name].get(field) != found[name][field]:
                    yield (
                        f"{name}: {field} is {found[name][field]}, but "
                        f"{recorded[name].get(field)} in the manifest"
                    )
