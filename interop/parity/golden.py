"""Record and check: what PyTorch computes, written where it runs and judged where it does not."""

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.errors import UserError
from jaxllm.interop.loading.load import load_pretrained
from jaxllm.interop.saving.multihost import agreed
from jaxllm.models import Model, TokenModel, with_scanned_layers
from jaxllm.params import stacks

from .alignment.activations import Alignment, derive
from .alignment.inputs import Inputs
from .alignment.parameter_names import imported, table_of, tensors_of
from .checkpoint import Prompt, open_both
from .comparison import STATED, chosen, levels_of, unjudged, with_rows
from .execution.jax_parameters import LazyWeights
from .execution.jax_trace import PRECISION
from .execution.jax_train import train_model
from .execution.recipe import Recipe, Training
from .execution.torch_decode import Decoded
from .levels.forward import FORWARD, blank_report, judge
from .levels.generation import decode_reference, forced_logits, judge_generation
from .levels.generation_vectors import Continued, continue_vectors, judge_vectors
from .levels.training import TRAINING, Runs, course_of, judge_training, train_references
from .levels.weights import compare_fields, fields_of
from .recording.pack import read_pack, write_pack
from .recording.recording import Recording, record
from .recording.sample import Sample, elements, spread_positions
from .report.report import Report
from .report.rows import LOGITS, WeightResult

POSITIONS = 24
FEATURES = 4096  # of each position
ELEMENTS = 1024  # of each parameter's gradient, moments and update


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
    path, given, recipe = Path(path), Prompt(**prompt), recipe or Recipe()
    reference, model = open_both(path, rules)
    inputs = given.inputs(path, reference, model).completed(model)
    levels = chosen(levels, levels_of(model))
    listed, table = with_scanned_layers(model, False), table_of(reference, model)
    bound = table.bound(stacks(listed))
    data: dict[str, Any] = {"subject": path.name, "levels": list(levels)}
    data["inputs"] = inputs.arrays
    data["config"] = fields_of(reference, model)
    data["weights"] = _digests(imported(bound, tensors_of(reference)))
    if set(FORWARD) & set(levels):
        taps = derive(table, listed, inputs) if "layers" in levels else ()
        length = inputs.target.shape[1]
        kept = None if positions is None else spread_positions(length, positions)
        sample = None if kept is None else Sample(kept, FEATURES)
        data["forward"] = _plain(record(reference, inputs, Alignment(taps), sample))
    if set(TRAINING) & set(levels):
        course = course_of(
            reference, model, bound, inputs, recipe.steps if "curve" in levels else 1
        )
        runs, moved = train_references(reference, bound, course, recipe)
        data["training"] = {
            "batches": [batch.arrays for batch in course.batches],
            "constant": sorted(course.constant),
            "recipe": dataclasses.asdict(recipe),
            "runs": [_plain(sampled(run)) for run in runs],
            "moved": moved,
        }
    if "generate" in levels:
        data["generate"] = _plain(
            decode_reference(reference, model, inputs)[1]
            if isinstance(model, TokenModel)
            else continue_vectors(reference, inputs)
        )
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
    with agreed(together):
        data = read_pack(Path(pack))
    try:
        levels = chosen(levels, data["levels"])
    except UserError as error:
        raise UserError(f"{error}, as recorded") from None
    with agreed(together):
        model = load_pretrained(path, mesh=mesh, dtype="float32", rules=rules)
    inputs = Inputs(**data["inputs"])
    if problems := inputs.problems(model, ("source_mask", "target_mask")):
        raise UserError("; ".join(problems))
    with nullcontext() if mesh is None else jax.set_mesh(mesh):
        report = _judge(data, model, inputs, levels)
    return dataclasses.replace(report, subject=f"{Path(path).name}, {data['subject']} as recorded")


def _judge(data: dict[str, Any], model: Model, inputs: Inputs, levels: Sequence[str]) -> Report:
    found: dict[str, Sequence[Any]] = {}
    listed = with_scanned_layers(model, False)
    fields, problems = data["config"]
    config = compare_fields(fields, problems, model)
    weights = _judge_weights(data["weights"], listed)
    report = blank_report(data["subject"], inputs, ())
    if set(levels) - set(STATED) and any(row.remark for row in weights):
        return unjudged(report, config, weights, levels)
    if "config" in levels:
        found["config"] = config
    if "weights" in levels:
        found["weights"] = weights
    if wanted := [level for level in levels if level in FORWARD]:
        recording = _recording(data["forward"])
        report = judge(recording, listed, wanted, subject=data["subject"])
        if recording.sample is not None:
            report = dataclasses.replace(report, tokens=len(recording.arrays[LOGITS]))
    if set(TRAINING) & set(levels):
        kept = data["training"]
        batches = [Inputs(**batch) for batch in kept["batches"]]
        recipe = Recipe(**kept["recipe"])
        ours = train_model(model, batches, recipe.optimizer(model), kept["constant"])
        plain, *others = (Training(**run) for run in kept["runs"])
        found |= judge_training(Runs(sampled(ours), plain, others, kept["moved"]), levels)
    if "generate" in levels:
        found["generate"] = _judge_generation(data["generate"], listed)
    return with_rows(report, found, levels)


def sampled(run: Training) -> Training:
    """Some elements of every array of a training."""
    first = {what: elements(arrays, ELEMENTS) for what, arrays in run.first.items()}
    return dataclasses.replace(run, first=first)


def _digests(arrays: Mapping[str, np.ndarray]) -> dict[str, list[str]]:
    """Shape and digest of each."""
    return {name: [str(x.shape), _digest(x)] for name, x in arrays.items()}


def _digest(array: np.ndarray) -> str:
    return sha256(np.ascontiguousarray(array, np.float32).data).hexdigest()


def _judge_weights(digests: Mapping[str, list[str]], listed: Model) -> list[WeightResult]:
    """Bit by bit; which bits differ a digest does not say. A remark tells other shapes."""
    arrays, rows = LazyWeights(listed), []
    for name in dict.fromkeys([*arrays, *digests]):
        array = arrays.get(name)
        shape, digest = digests.get(name, ["missing", ""])
        path, _, parameter = name.rpartition(".")
        found = "missing" if array is None else str(array.shape)
        bits = 1 if array is None else 8 * array.nbytes
        remark = "" if found == shape else f"{shape} in the reference, {found} in the model"
        is_same = not remark and array is not None and _digest(array) == digest
        rows.append(WeightResult(path, parameter, (name,), bits, 0 if is_same else bits, remark))
    return rows


def _judge_generation(theirs: dict[str, Any], listed: Model) -> Sequence[Any]:
    if not isinstance(listed, TokenModel):
        prompt = Inputs(**theirs.pop("prompt"))
        return judge_vectors(listed, Continued(prompt, **theirs))
    ties = frozenset((row, token) for row, token in theirs["ties"])

    def predict(prompts: Sequence[list[int]], new: Sequence[Sequence[int]]) -> np.ndarray:
        # The reference cannot be asked; that our logits are its own is what the other rows say.
        with jax.default_matmul_precision(PRECISION):
            return forced_logits(listed, prompts, new)

    return judge_generation(listed, Decoded(**{**theirs, "ties": ties}), predict)


def _plain(found: Any) -> dict[str, Any]:
    """The fields of a dataclass or a named tuple as plain data."""
    fields = found._asdict() if hasattr(found, "_asdict") else vars(found)
    return {name: _plain_value(value) for name, value in fields.items()}


def _plain_value(value: Any) -> Any:
    if isinstance(value, Inputs):
        return value.arrays
    if isinstance(value, frozenset):
        return sorted(value)
    return dataclasses.asdict(value) if isinstance(value, Sample) else value


def _recording(kept: dict[str, Any]) -> Recording:
    sample = kept["sample"]
    given = {
        **kept,
        "inputs": Inputs(**kept["inputs"]),
        "of_source": frozenset(kept["of_source"]),
        "sample": sample and Sample(tuple(sample["positions"]), sample["features"]),
    }
    return Recording(**given)
