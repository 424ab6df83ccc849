"""Orbax checkpoints on `s3://`, which Orbax takes for a folder of this machine.

Orbax writes to `gs://` without renaming: files of a step under their last names, then one that says
that the step is complete. S3 has the same operations, and TensorStore, which writes the arrays, a
driver for it. This leads the addresses `s3://` the same way.
"""

from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from jaxllm.errors import UserError

from .paths import kvstore

S3 = "s3://"
_NEEDED = {
    gcs_utils: ("_GCS_PATH_PREFIX", "get_kvstore_for_gcs"),
    tensorstore_utils: ("_use_gcs_driver", "_normalize_path"),
}


def use_s3() -> None:
    """Lets Orbax write checkpoints to `s3://`; calling it again changes nothing.

    Raises:
        UserError: this version of Orbax has other functions.
    """
    prefixes = getattr(gcs_utils, "_GCS_PATH_PREFIX", None)
    if prefixes is not None and S3 in prefixes:
        return
    for module, names in _NEEDED.items():
        if missing := [name for name in names if not hasattr(module, name)]:
            raise UserError(
                f"checkpoints cannot be written to s3://: Orbax's {module.__name__} has no "
                f"{' and no '.join(missing)}; install the version of constraints.txt, or write to "
                "a disk and `aws s3 sync` it"
            )
    gcs_spec, uses_gcs = gcs_utils.get_kvstore_for_gcs, tensorstore_utils._use_gcs_driver
    normalize = tensorstore_utils._normalize_path

    def spec(path: str) -> dict[str, Any]:
        if not path.startswith(S3):
            return gcs_spec(path)
        found = kvstore(path)
        return {**found, "path": found["path"].removesuffix("/")}

    replaced = {
        (gcs_utils, "_GCS_PATH_PREFIX"): (*gcs_utils._GCS_PATH_PREFIX, S3),
        (gcs_utils, "get_kvstore_for_gcs"): spec,
        (tensorstore_utils, "_use_gcs_driver"): (
            lambda directory: directory.startswith(S3) or uses_gcs(directory)
        ),
        (tensorstore_utils, "_normalize_path"): (
            lambda path: (
                normalize(path).replace("s3:/", S3) if path.startswith(S3) else normalize(path)
            )
        ),
    }
    for (module, name), value in replaced.items():
        setattr(module, name, value)
