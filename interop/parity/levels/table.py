"""The table of parity levels: a new level is one row here and a module with its stage."""

from collections.abc import Iterable, Sequence

from jaxllm.config import has_head
from jaxllm.errors import UserError
from jaxllm.interop.loading.lazy_model import is_stored
from jaxllm.interop.parity.alignment.function_model import FunctionModel
from jaxllm.interop.parity.alignment.inputs import output_config
from jaxllm.interop.parity.numerics.precision import FLOAT32
from jaxllm.models import Model

from .activations.stage import FORWARD
from .config import CONFIG
from .generation import GENERATION
from .level import Level, Stage
from .training import TRAINING
from .training_rows import judge_curve, judge_gradients, judge_step
from .weights import WEIGHTS

NOT_ASKED = "not asked for"
SLOW = "not asked for, since it takes as long as all others together"


def training_obstacle(model: Model) -> str:
    """Returns why training steps cannot be compared; "" if they can.

    They are compared in float32, as weights are trained, and need all weights in memory.
    """
    if is_stored(model):
        return "the weights are on disk"
    if output_config(model).numerics.dtype != FLOAT32.dtype:
        return f"compared in {FLOAT32.dtype} alone"
    return "" if has_head(model.config) else "the model has no head"


def config_obstacle(model: Model) -> str:
    """Returns why configs cannot be compared: a function has none; "" if they can."""
    return "a function has no config" if isinstance(model, FunctionModel) else ""


def activations_obstacle(model: Model) -> str:
    """Returns why activations cannot be compared; "" if they can.

    Those of a function are the ones that its user names.
    """
    is_bare = isinstance(model, FunctionModel) and not model.parts.function.taps
    return "no taps name activations of the function" if is_bare else ""


def generation_obstacle(model: Model) -> str:
    """Returns why generated texts cannot be compared; "" if they can.

    In other dtypes than float32, ties of tokens are common.
    """
    if isinstance(model, FunctionModel):
        return "a function does not generate"
    is_pooled = getattr(output_config(model), "pooled", False)
    return training_obstacle(model) or ("the model pools its sequences" if is_pooled else "")


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
            obstacle=config_obstacle,
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
            obstacle=activations_obstacle,
        ),
        Level(
            name="gradients",
            stage=TRAINING,
            rows=judge_gradients,
            noun="gradients",
            title="Gradients",
            caption="The gradients of the loss that are closest to their thresholds.",
            obstacle=training_obstacle,
        ),
        Level(
            name="step",
            stage=TRAINING,
            rows=judge_step,
            noun="arrays",
            title="One step",
            caption="After one AdamW step: both moments, and the update where it exceeds noise. "
            "Those closest to their thresholds are listed.",
            obstacle=training_obstacle,
        ),
        Level(
            name="curve",
            stage=TRAINING,
            rows=judge_curve,
            noun="steps",
            title="Training",
            caption="Both sides train on the same batches: losses and their relative difference.",
            obstacle=training_obstacle,
            by_default=False,  # it takes as long as all others together
        ),
        Level(
            name="generate",
            stage=GENERATION,
            noun="texts",
            title="Generation",
            caption="Greedy and beam search with a KV cache.",
            obstacle=generation_obstacle,
        ),
    )
}


def levels_of(model: Model) -> tuple[str, ...]:
    """Returns the levels that exist for a model."""
    return tuple(name for name, level in LEVELS.items() if level.exists_for(model))


def not_compared(model: Model, levels: Sequence[str], *, is_default: bool) -> dict[str, str]:
    """Returns the levels that are not among `levels`, with the reason of each.

    Args:
        model: the JAX model.
        levels: the levels that are compared.
        is_default: whether they are the usual ones, and not named by the user.
    """
    return {
        name: level.obstacle(model) or (SLOW if is_default and not level.by_default else NOT_ASKED)
        for name, level in LEVELS.items()
        if name not in levels
    }


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
