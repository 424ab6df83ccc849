"""The table of parity levels: a new level is one row here and a module with its stage."""

from collections.abc import Iterable, Sequence

from jaxllm.config import has_head
from jaxllm.errors import UserError
from jaxllm.interop.loading.lazy_model import is_stored
from jaxllm.interop.parity.alignment.function_model import FunctionModel
from jaxllm.interop.parity.alignment.inputs import output_config
from jaxllm.interop.parity.numerics.precision import FLOAT32
from jaxllm.models import Model

from .config import CONFIG
from .forward import FORWARD
from .generation import GENERATION
from .level import Level, Stage
from .training import TRAINING
from .training_rows import judge_curve, judge_gradients, judge_step
from .weights import WEIGHTS


def is_loaded(model: Model) -> bool:
    """Whether the weights are in memory, which training and compiling require."""
    return not is_stored(model)


def is_trained(model: Model) -> bool:
    """Whether training steps can be compared: in float32, as weights are trained, with a head."""
    is_float32 = output_config(model).numerics.dtype == FLOAT32.dtype
    return is_loaded(model) and is_float32 and has_head(model.config)


def is_ours(model: Model) -> bool:
    """Whether it is a model of jaxllm, which has a config and generates, and no function."""
    return not isinstance(model, FunctionModel)


def has_activations(model: Model) -> bool:
    """Whether activations are known; those of a function are the ones that its user names."""
    return not isinstance(model, FunctionModel) or bool(model.parts.function.taps)


def generates(model: Model) -> bool:
    """Whether generated texts can be compared: in float32, elsewhere ties of tokens are common.

    Models that pool their sequences cannot generate.
    """
    is_pooled = getattr(output_config(model), "pooled", False)
    return is_ours(model) and is_trained(model) and not is_pooled


LEVELS: dict[str, Level] = {
    level.name: level
    for level in (
        Level(
            name="weights",
            stage=WEIGHTS,
            noun="tensors",
            title="Weights",
            caption="Parameters that are not equal bit for bit.",
            causes=("config",),
        ),
        Level(
            name="config",
            stage=CONFIG,
            noun="fields",
            title="Config",
            caption="Fields that differ.",
            exists_for=is_ours,
        ),
        Level(
            name="logits",
            stage=FORWARD,
            rows=lambda forward: forward.outputs,
            noun="tokens",
            title="Outputs that are wrong on their own",
            caption="These outputs exceed their thresholds even when computed from the reference's "
            "inputs.",
            causes=("layers",),
        ),
        Level(
            name="layers",
            stage=FORWARD,
            rows=lambda forward: forward.activations,
            noun="activations",
            title="Activations that are wrong on their own",
            caption="These activations exceed their thresholds even when computed from the "
            "reference's inputs.",
            exists_for=has_activations,
        ),
        Level(
            name="gradients",
            stage=TRAINING,
            rows=judge_gradients,
            noun="gradients",
            title="Gradients",
            caption="The gradients of the loss that are closest to their thresholds.",
            exists_for=is_trained,
        ),
        Level(
            name="step",
            stage=TRAINING,
            rows=judge_step,
            noun="arrays",
            title="One step",
            caption="After one AdamW step: both moments, and the update where it exceeds noise. "
            "Those closest to their thresholds are listed.",
            exists_for=is_trained,
        ),
        Level(
            name="curve",
            stage=TRAINING,
            rows=judge_curve,
            noun="steps",
            title="Training",
            caption="Both sides train on the same batches: losses and their relative difference.",
            exists_for=is_trained,
            by_default=False,  # it takes as long as all others together
        ),
        Level(
            name="generate",
            stage=GENERATION,
            noun="texts",
            title="Generation",
            caption="Greedy and beam search with a KV cache.",
            exists_for=generates,
        ),
    )
}


def levels_of(model: Model) -> tuple[str, ...]:
    """Returns the levels that exist for a model."""
    return tuple(name for name, level in LEVELS.items() if level.exists_for(model))


def select_levels(levels: Sequence[str] | None, known: Sequence[str]) -> Sequence[str]:
    """Returns `levels`, or all of `known` if it is None.

    Raises:
        UserError: `levels` is empty or has a level that is not in `known`.
    """
    if levels is None:
        return known
    if not levels or not set(levels) <= set(known):
        is_without_taps = "layers" in levels and "layers" not in known
        hint = "; layers needs taps, which name the activations" if is_without_taps else ""
        raise UserError(f"levels={levels!r}: choose at least one of {', '.join(known)}{hint}")
    return levels


def stages_of(levels: Iterable[str]) -> list[Stage]:
    """Returns the stages of the levels, each once."""
    return list({(stage := LEVELS[level].stage).name: stage for level in levels}.values())


def levels_without_computation(known: Iterable[str] = tuple(LEVELS)) -> list[str]:
    """Returns which of the levels only read both sides and compute nothing: weights, config."""
    return [name for name in known if not LEVELS[name].stage.computes]


def from_causes_to_effects() -> list[Level]:
    """Returns all levels, each after the levels whose errors cause errors in it."""
    names = dict.fromkeys(name for level in LEVELS.values() for name in (*level.causes, level.name))
    return [LEVELS[name] for name in names]
