"""JAX's coordinator, which works before, and without, collectives of devices."""

from typing import Any

WAIT_S = 60  # for the other processes


def joined_job() -> Any:
    """Returns jax's state of the job that this process has joined.

    It has `client`, which is None if there is no job, `process_id`, `num_processes` and
    `coordinator_address`. Unlike `jax.process_index()` it needs no devices; those of a job are not
    found before all of its processes look for theirs.
    """
    from jax._src import distributed  # jax exports no name for its state

    return distributed.global_state


def exchange_texts(name: str, text: str, timeout_s: int = WAIT_S) -> list[str]:
    """Returns the text of every process, in their order; all must call this with the same name.

    Unlike `gather_texts` it needs no device, so processes with other devices can say so.

    Args:
        name: used once in the life of a job.
        text: of this process.
        timeout_s: seconds to wait for each of the others.

    Raises:
        TimeoutError: a process has not called this in time; names it.
    """
    job = joined_job()
    if job.client is None:
        return [text]
    job.client.key_value_set(f"jaxllm/exchange/{name}/{job.process_id}", text)
    found = []
    for rank in range(job.num_processes):
        try:
            key = f"jaxllm/exchange/{name}/{rank}"
            found.append(job.client.blocking_key_value_get(key, timeout_s * 1000))
        except Exception as error:
            if "DEADLINE_EXCEEDED" not in str(error):  # jax's errors have no other code
                raise
            raise TimeoutError(f"process {rank} has not answered within {timeout_s} s") from None
    return found
