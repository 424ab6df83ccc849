"""Golden packs: records what PyTorch computes, and checks it later on machines without PyTorch."""

import dataclasses
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.errors import OTHER_VERSION, CheckpointError, UserError
from jaxllm.hub import local_path
from jaxllm.interop.adapters.merging import is_adapter
from jaxllm.interop.loading.allowances import allowance_notes
from jaxllm.interop.loading.load import load_pretrained
from jaxllm.interop.saving.multihost import fail_together
from jaxllm.models import Model

from .alignment.inputs import ARRAYS, FORMER_NAMES, Inputs
from .both_sides import open_both
from .checkpoint import InputOptions
from .comparison import assemble
from .execution.recipe import Recipe
from .levels.config import CONFIG
from .levels.sides import Comparison, JaxSide
from .levels.table import (
    LEVELS,
    NOT_ASKED,
    levels_of,
    levels_without_computation,
    not_compared,
    select_levels,
    stages_of,
)
from .levels.weights import WEIGHTS, check_weights
from .memory.malloc import keeping_freed_memory, return_scarce_memory
from .progress import announce, expecting
from .recording.pack import read_pack, write_pack
from .recording.sample import Sample, spread_positions
from .rendered_report import Report

POSITIONS = 24  # kept of each row
FEATURES = 4096  # kept of each position
SAMPLED = (
    "The pack has a sample of the positions, in which some causes do not show, such as those of "
    "RoPE and masks: record it with `jaxllm parity record --positions all` to look for all of them "
    "and for each activation's own error."
)


def record_checkpoint(
    path: str | Path,
    pack: str | Path,
    *,
    positions: int | None = POSITIONS,
    levels: Sequence[str] | None = None,
    recipe: Recipe | None = None,
    rules: Any = None,
    strict: bool = True,
    allow: Sequence[str] = (),
    **prompt: Any,
) -> int:
    """Records what PyTorch computes from a checkpoint as a pack, a new folder.

    Args:
        path: the checkpoint, as for `check_checkpoint`.
        pack: the folder to write; it must not exist.
        positions: how many positions of each row are kept. None keeps all; only then can a check
            compute each activation from the reference's inputs, to find the first that is wrong on
            its own.
        levels: some of the levels of `compare`; by default all that exist for the model.
        recipe: the training recipe; by default 20 steps of AdamW.
        rules: conversion rules of a custom model, see docs/rules.md.
        strict: as for `load_pretrained`.
        allow: as for `load_pretrained`.
        prompt: the inputs, as for `check_checkpoint`.

    Returns:
        The size of the pack in bytes.
    """
    path, given = local_path(path), InputOptions(**prompt)
    select_levels(levels, list(LEVELS))  # before the model is loaded; not all exist for each model
    _check_is_whole(path)
    announce("loading both sides")
    reference, model = open_both(path, rules, strict=strict, allow=allow)
    inputs = given.inputs(path, reference, model).with_labels(model)
    levels = select_levels(levels, levels_of(model))
    length = inputs.target.shape[1]
    kept = None if positions is None else spread_positions(length, positions)
    comparison = Comparison(
        reference=reference,
        model=model,
        inputs=inputs,
        levels=levels,
        recipe=recipe or Recipe(),
        sample=None if kept is None else Sample(kept, FEATURES),
    )
    data = {"subject": path.name, "levels": list(levels), "inputs": inputs.arrays}
    stages = stages_of([*levels_without_computation(), *levels])
    # Of the runs in a comparison, one for each stage is the model's, and activations alone are
    # not recorded for a sample.
    fed = [level for level in levels if kept is None or level != "layers"]
    runs = sum(stage.runs(fed, comparison.draws) - 1 for stage in stages if stage.computes)
    with expecting(runs), keeping_freed_memory():
        for stage in stages:
            data[stage.name] = stage.record(comparison)
            return_scarce_memory()
    return write_pack(data, Path(pack))


def _check_is_whole(path: Path) -> None:
    """Raises UserError for an adapter."""
    if is_adapter(path):
        raise UserError(
            f"{path} is an adapter, of which nothing is recorded: compare it with `jaxllm parity`, "
            "or record it merged (`jaxllm convert --merge`)"
        )


def check_pack(
    pack: str | Path,
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    levels: Sequence[str] | None = None,
    rules: Any = None,
    strict: bool = True,
    allow: Sequence[str] = (),
) -> Report:
    """Compares a checkpoint with a pack recorded in PyTorch. Needs no PyTorch.

    Args:
        pack: the folder that `record_checkpoint` wrote.
        path: the same checkpoint, in any format.
        mesh: the devices to compute on; required if there are several processes.
        levels: some of the recorded levels; by default all of them.
        rules: conversion rules of a custom model, see docs/rules.md.
        strict: as for `load_pretrained`.
        allow: as for `load_pretrained`.

    Returns:
        The report, as from `check_checkpoint`.

    Raises:
        CheckpointError: the pack or the checkpoint is damaged, or of another version.
        OSError: a file cannot be read.
        UserError: a level was not recorded, the model does not take the recorded inputs, or there
            are several processes and no mesh.
    """
    if (is_multi_host := jax.process_count() > 1) and mesh is None:
        _check_is_alone()
    with fail_together(is_multi_host):
        path, data = local_path(path), read_pack(Path(pack))
        if problems := [*_pack_problems(data)]:
            raise CheckpointError([*problems, OTHER_VERSION], pack)
    try:
        levels = select_levels(levels, data["levels"])
    except UserError as error:
        raise UserError(f"{error}, which are recorded in {pack}") from None
    options: dict[str, Any] = {"rules": rules, "strict": strict, "allow": allow}
    with fail_together(is_multi_host):
        announce("loading the model")
        model = load_pretrained(path, mesh=mesh, dtype="float32", **options)
    inputs = Inputs.from_arrays(data["inputs"])
    if problems := inputs.problems(model, ("source_mask", "target_mask")):
        raise UserError("; ".join(problems))
    with nullcontext() if mesh is None else jax.set_mesh(mesh):
        try:
            report = _judge(data, JaxSide(model=model, levels=levels), inputs)
        except UserError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            problem = f"its data cannot be compared: {type(error).__name__}: {error}"
            raise CheckpointError([problem, OTHER_VERSION], pack) from error
    subject = f"{path.name}, {data['subject']} as recorded"
    notes = (*([SAMPLED] if _lacks_hints(report) else []), *allowance_notes(allow))
    others, paths = _not_compared(model, levels, data["levels"]), _paths(path, pack)
    own: dict[str, Any] = {"notes": notes, "paths": paths, "not_compared": others}
    return dataclasses.replace(report, subject=subject, **own)


def _not_compared(model: Model, levels: Sequence[str], recorded: Sequence[str]) -> dict[str, str]:
    """Returns the levels that were not compared, with the reason of each."""
    found = not_compared(model, levels, is_default=False)
    return {
        name: "not recorded" if why == NOT_ASKED and name not in recorded else why
        for name, why in found.items()
    }


def _check_is_alone() -> None:
    """Raises UserError if there are several processes, which need a mesh."""
    if (count := jax.process_count()) > 1:
        raise UserError(
            f"there are {count} processes and no mesh: give mesh=, a mesh over all of their devices"
        )


def _paths(path: str | Path, pack: str | Path) -> dict[str, str]:
    """Returns the report's paths."""
    return {"model": str(Path(path).resolve()), "reference": str(Path(pack).resolve())}


def _pack_problems(data: Mapping[str, Any]) -> Iterator[str]:
    """Yields what differs from the data that `record_checkpoint` writes."""
    if not isinstance(data.get("subject"), str):
        yield _wrong("subject", data, "a text")
    levels, inputs = data.get("levels"), data.get("inputs")
    if not isinstance(levels, list) or not levels:
        yield _wrong("levels", data, "a list of levels")
        levels = []
    unknown = [level for level in levels if level not in list(LEVELS)]
    for level in unknown:
        yield f"level {level!r} is unknown; the levels are {', '.join(LEVELS)}"
    known = {*FORMER_NAMES, *ARRAYS}
    if not isinstance(inputs, dict) or "target" not in inputs or not inputs.keys() <= known:
        yield _wrong(
            "inputs",
            data,
            f"arrays: target and some of {sorted(known - {'target', *FORMER_NAMES})}",
        )
    elif wrong := [name for name, array in inputs.items() if not isinstance(array, np.ndarray)]:
        yield f"inputs: {', '.join(wrong)} is not an array"
    match data.get(CONFIG.name):
        case [dict() | None, list()]:
            pass
        case _:
            yield _wrong(CONFIG.name, data, "a pair of fields and problems")
    recorded = [level for level in levels if level not in unknown]
    for stage in stages_of([*levels_without_computation(), *recorded]):
        if stage is not CONFIG and not isinstance(data.get(stage.name), dict):
            yield _wrong(stage.name, data, "a group of fields")


def _lacks_hints(report: Report) -> bool:
    """Whether activations are wrong, but none could be computed from the reference's inputs."""
    wrong = [tap for tap in report.taps if not tap.ok]
    return bool(wrong) and all(tap.forced is None for tap in report.taps)


def _wrong(name: str, data: Mapping[str, Any], allowed: str) -> str:
    if name not in data:
        return f"{name} is missing"
    return f"{name} is {reprlib.repr(data[name])}; it must be {allowed}"


def _judge(data: dict[str, Any], ours: JaxSide, inputs: Inputs) -> Report:
    stages = stages_of(ours.levels)
    if any(stage.computes for stage in stages):
        stages = stages_of([*levels_without_computation(), *ours.levels])
        rows = check_weights(data[WEIGHTS.name], ours)
        if any(row.remark for row in rows):  # shapes differ, so nothing can be run
            stages = stages_of(levels_without_computation())
    with expecting(sum(stage.computes for stage in stages)):  # one run of the model each
        found = {stage.name: stage.check(data[stage.name], ours) for stage in stages}
    return assemble(data["subject"], inputs, ours.levels, found)
