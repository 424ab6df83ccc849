"""Commands that run on several hosts at once: one process on each, the same command in all."""

import os

COORDINATOR, COUNT, ID = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"


def join_processes() -> None:
    """Makes this one of the processes that meet at `JAX_COORDINATOR_ADDRESS`, if that is set.

    How many they are and which one this is say `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; by default
    jax finds it out (Slurm, Open MPI, Kubernetes, Cloud TPU). Call it before a device is used.

    Raises:
        ValueError: a number is none, or neither the variables nor jax know it.
    """
    if not os.environ.get(COORDINATOR):  # which jax reads itself
        return
    import jax

    if jax.distributed.is_initialized():
        return
    given = {name: os.environ[name] for name in (COUNT, ID) if os.environ.get(name)}
    if wrong := [f"{name}={text!r}" for name, text in given.items() if not text.isdigit()]:
        raise ValueError(
            f"{', '.join(wrong)}: whole numbers are wanted, since {COORDINATOR} is set"
        )
    count, own = (int(given[name]) if name in given else None for name in (COUNT, ID))
    jax.distributed.initialize(num_processes=count, process_id=own)
