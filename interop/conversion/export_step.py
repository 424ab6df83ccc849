"""Writes the weights of a run at a step for other software; `train` calls it in the background."""

from pathlib import Path

from jaxllm.config import Dtype
from jaxllm.interop.adapters.merging import is_adapter
from jaxllm.interop.adapters.run_to_peft import run_to_peft

from .convert import convert


def export_step(
    run: str | Path,
    path: str | Path,
    *,
    step: int | None = None,
    to: str = "hf",
    dtype: Dtype | None = None,
) -> None:
    """Writes a run's weights, of LoRA the merged model or the adapter.

    Args:
        run: the folder of the run.
        path: a folder that does not exist yet, or is empty.
        step: the step; by default the newest.
        to: "hf" or "peft", the adapter of a run with LoRA.
        dtype: for "hf"; by default as stored, with LoRA as in the base.

    Raises:
        CheckpointError: as `convert` and `run_to_peft`.

    Example:
        train(config, export=export_step)
    """
    if to == "peft":
        run_to_peft(run, path, step)
    else:
        convert(run, path, to=to, dtype=dtype, step=step, merge=is_adapter(Path(run)))
