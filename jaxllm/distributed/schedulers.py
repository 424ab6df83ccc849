"""Jobs of several processes, as the environment variables of schedulers and launchers tell them."""

import os
from typing import NamedTuple


class Job(NamedTuple):
    """A job of several processes that a scheduler or a launcher has started."""

    launcher: str
    variables: tuple[str, ...]  # those that say so, with their values


# The variables that hold the number of processes and the index of this one.
_SIZES = {
    "Slurm": ("SLURM_NTASKS", "SLURM_PROCID"),
    "Open MPI": ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    "MPI": ("PMI_SIZE", "PMI_RANK"),  # MPICH and Intel MPI
    "MVAPICH": ("MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_RANK"),
    "Flux": ("FLUX_JOB_SIZE", "FLUX_TASK_RANK"),
    "LSF": ("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK"),
    "AWS Batch": ("AWS_BATCH_JOB_NUM_NODES", "AWS_BATCH_JOB_NODE_INDEX"),
    "torchrun": ("WORLD_SIZE", "RANK"),
}
# An indexed job of Kubernetes does not tell its pods how many they are.
_KUBERNETES = ("KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX")


def find_job() -> Job | None:
    """Returns the job of several processes that this process is one of, or None."""
    for launcher, names in _SIZES.items():
        size, index = (os.environ.get(name, "") for name in names)
        if index and size.isdecimal() and int(size) > 1:
            return _job(launcher, names)
    if all(os.environ.get(name) for name in _KUBERNETES):
        return _job("Kubernetes", _KUBERNETES)
    return _find_tpu_job()


def _find_tpu_job() -> Job | None:
    """Returns the job of the hosts of a TPU slice, or of several, that this host is one of."""
    from jax._src.clusters.cloud_tpu_cluster import BaseTpuCluster  # jax exports no name for it

    for environment in BaseTpuCluster.__subclasses__():
        if environment.is_env_present() and (hosts := environment.get_process_count()) > 1:
            return Job("Cloud TPU", (f"{hosts} hosts",))
    return None


def is_known_to_jax() -> bool:
    """Whether jax itself finds out where the processes of this job meet."""
    from jax._src.clusters import ClusterEnv  # jax exports no name for what `initialize` asks

    found = (env for env in ClusterEnv._cluster_types if not env.opt_in_only_method)
    return any(env.is_env_present() for env in found)


def _job(launcher: str, names: tuple[str, ...]) -> Job:
    return Job(launcher, tuple(f"{name}={os.environ[name]}" for name in names))
