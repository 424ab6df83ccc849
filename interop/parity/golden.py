"""Record and check: what PyTorch computes, written where it runs and judged where it does not."""

import dataclasses
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from jaxllm.errors import UserError
from jaxllm.interop.loading.load import load_pretrained
from jaxllm.interop.saving.multihost import fail_together

from .alignment.inputs import Inputs
from .checkpoint import Prompt, open_both
from .comparison import assemble
from .execution.recipe import Recipe
from .levels.pair import Ours, Pair
from .levels.table import chosen, levels_of, stages_of, stated_levels
from .levels.weights import WEIGHTS, check_weights
from .recording.pack import read_pack, write_pack
from .recording.sample import Sample, spread_positions
from .rendered_report import Report

POSITIONS = 24
FEATURES = 4096  # of each position


def record_checkpoint(
    path: str | Path,
    pack: str | Path,
    *,
    positions: int | None = POSITIONS,
    levels: Sequence[str] | None = None,
    recipe: Recipe | None = None,
    rules: Any = None,
    **prompt: Any,
) -> int:
    """Writes what PyTorch computes from a checkpoint into a new folder; how many bytes it takes.

    Args:
        path: the checkpoint, as that of `check_checkpoint`.
        pack: the folder.
        positions: how many of each row are kept; None: all, with which a first wrong step is found
            by what it is given as well.
        levels: of those of `compare`; by default all.
        recipe: of training; by default 20 steps of AdamW.
        rules: of a model of your own, as docs/rules.md says.
        prompt: what to compare on, as for `check_checkpoint`.
    """
    path, given = Path(path), Prompt(**prompt)
    reference, model = open_both(path, rules)
    inputs = given.inputs(path, reference, model).completed(model)
    levels = chosen(levels, levels_of(model))
    length = inputs.target.shape[1]
    kept = None if positions is None else spread_positions(length, positions)
    pair = Pair(
        reference=reference,
        model=model,
        inputs=inputs,
        levels=levels,
        recipe=recipe or Recipe(),
        sample=None if kept is None else Sample(kept, FEATURES),
    )
    data = {"subject": path.name, "levels": list(levels), "inputs": inputs.arrays}
    for stage in stages_of([*stated_levels(), *levels]):
        data[stage.name] = stage.record(pair)
    return write_pack(data, Path(pack))


def check_pack(
    pack: str | Path,
    path: str | Path,
    *,
    mesh: Mesh | None = None,
    levels: Sequence[str] | None = None,
    rules: Any = None,
) -> Report:
    """Whether we compute from a checkpoint what PyTorch did, as a pack says. Needs no PyTorch.

    Args:
        pack: what `record_checkpoint` wrote.
        path: the same checkpoint, in any spelling.
        mesh: where to compute it.
        levels: of those recorded; by default all.
        rules: of a model of your own, as docs/rules.md says.

    Raises:
        CheckpointError: the pack or the checkpoint cannot be read.
        UserError: a level was not recorded, or the inputs are none of the model's.
    """
    together = jax.process_count() > 1
    if together and mesh is None:
        raise UserError(f"{jax.process_count()} processes need a mesh over all of their devices")
    with fail_together(together):
        data = read_pack(Path(pack))
    try:
        levels = chosen(levels, data["levels"])
    except UserError as error:
        raise UserError(f"{error}, as recorded") from None
    with fail_together(together):
        model = load_pretrained(path, mesh=mesh, dtype="float32", rules=rules)
    inputs = Inputs(**data["inputs"])
    if problems := inputs.problems(model, ("source_mask", "target_mask")):
        raise UserError("; ".join(problems))
    with nullcontext() if mesh is None else jax.set_mesh(mesh):
        report = _judge(data, Ours(model=model, levels=levels), inputs)
    return dataclasses.replace(report, subject=f"{Path(path).name}, {data['subject']} as recorded")


def _judge(data: dict[str, Any], ours: Ours, inputs: Inputs) -> Report:
    stages = stages_of(ours.levels)
    if any(stage.computes for stage in stages):
        rows = check_weights(data[WEIGHTS.name], ours)
        if any(row.remark for row in rows):  # the sizes differ
            stages = stages_of(stated_levels())
    found = {stage.name: stage.check(data[stage.name], ours) for stage in stages}
    return assemble(data["subject"], inputs, ours.levels, found)
