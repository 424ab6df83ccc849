"""Changes of a run's config that a resumed run may not make, since they change its numbers."""

from typing import Any

from jaxllm.differences import differences
from jaxllm.train.config import TrainConfig, from_stored, to_plain

# Fields that a resumed run may change: where and how it runs, not what it computes.
FREE_ON_RESUME = (
    *("output", "mesh", "eval_every", "eval_batches", "save_every", "keep", "logging", "export"),
    *("speed", "init_from", "strict", "allow", "loss.chunk_tokens"),
)


def find_changes(saved: dict[str, Any], config: TrainConfig, step: int) -> list[str]:
    """Returns one line per field that differs from the saved run and affects its numbers.

    A run that is finished at `step` may be extended: by more steps and phases of its schedule.
    """
    found = differences(to_plain(from_stored(saved, "the checkpoint")), to_plain(config))
    free = set(FREE_ON_RESUME)
    changes = [
        one
        for one in found
        if not {one[0], one[0].partition(".")[0]} & free and not one[0].endswith(".max_epochs")
    ]
    if saved.get("steps") == step < config.steps:
        changes = [change for change in changes if not _extends(*change)]
    return [
        f"{name}: {old!r} in the checkpoint, {new!r} now"
        + ("; a run can be extended when it is finished" if name == "steps" and new > old else "")
        for name, old, new in changes
    ]


def _extends(name: str, old: Any, new: Any) -> bool:
    """Whether a change of a field only adds to the end of a run."""
    return name == "steps" or (name == "optimizer.phases" and new[: len(old)] == old)
