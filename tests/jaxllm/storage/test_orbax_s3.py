"""Orbax takes addresses of S3 as object stores; tests/train/test_object_store.py trains there."""

import pytest
from etils import epath
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from jaxllm.errors import UserError
from jaxllm.storage.orbax_s3 import use_s3

PATCHED = [
    (gcs_utils, "_GCS_PATH_PREFIX"),
    (gcs_utils, "get_kvstore_for_gcs"),
    (tensorstore_utils, "_use_gcs_driver"),
    (tensorstore_utils, "_normalize_path"),
]


@pytest.fixture(autouse=True)
def unchanged(monkeypatch):
    """Restores the functions that the module replaces."""
    for module, name in PATCHED:
        monkeypatch.setattr(module, name, getattr(module, name))
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_ACCESS_KEY_ID"):
        monkeypatch.delenv(name, raising=False)


def test_arrays_go_through_the_driver_of_s3(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "name")
    use_s3()
    use_s3()
    spec = tensorstore_utils.build_kvstore_tspec("s3://bucket/run/4/model/", use_ocdbt=True)
    assert spec["driver"] == "ocdbt"
    assert spec["base"] == {
        "driver": "s3",
        "bucket": "bucket",
        "path": "run/4/model",
        "endpoint": "http://127.0.0.1:1",
        "aws_region": "eu-west-1",
        "aws_credentials": {"type": "environment"},
    }
    assert gcs_utils._GCS_PATH_PREFIX.count("s3://") == 1


def test_other_paths_are_as_before(tmp_path):
    use_s3()
    local = tensorstore_utils.build_kvstore_tspec(str(tmp_path), use_ocdbt=True)
    assert local["base"]["driver"] == "file"
    cloud = tensorstore_utils.build_kvstore_tspec("gs://bucket/run", use_ocdbt=True)
    assert cloud["base"] == {"driver": "gcs", "bucket": "bucket", "path": "run"}
    assert gcs_utils.is_gcs_path(epath.Path("s3://bucket/run"))
    assert not gcs_utils.is_gcs_path(epath.Path(tmp_path))


def test_another_orbax_is_refused(monkeypatch):
    monkeypatch.delattr(tensorstore_utils, "_use_gcs_driver")
    with pytest.raises(UserError, match="has no _use_gcs_driver; install the version"):
        use_s3()
