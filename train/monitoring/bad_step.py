"""Messages about a bad step: its metrics, and which batch it was."""

import math
from collections.abc import Mapping

from jaxllm.train.config import TrainConfig

BAD_STEP = "bad_step"  # the metric of a step that left everything as it was
MOST_SKIPPED = 10  # bad steps in a row, after which more would not help


def describe_bad_step(
    config: TrainConfig, step: int, metrics: Mapping[str, float], outcome: str
) -> str:
    """Returns what is wrong with a step, and its batch, which is a function of these numbers.

    Args:
        config: the run.
        step: the number of the step; the first is 1.
        metrics: those of the step.
        outcome: what becomes of it, such as "is skipped".
    """
    if all(map(math.isfinite, metrics.values())):
        what = (
            f"a gradient norm of more than {config.optimizer.bad_steps.spike} times its recent mean"
        )
    else:
        what = "non-finite metrics"
    first = (step - 1) * config.batch_size
    batch = f"{first} to {first + config.batch_size - 1} in the order of seed {config.data.seed}"
    return f"step {step} has {what} and {outcome}: {dict(metrics)}; its batch is examples {batch}"
