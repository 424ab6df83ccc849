"""A bucket on this machine that speaks S3, by moto."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

BUCKET = "bucket"


class Objects:
    """The objects of the bucket, as `gcs_server.Objects` has them."""

    def __init__(self, client: Any):
        self._client = client

    @property
    def data(self) -> dict[str, tuple[str, bytes]]:
        """The version and the content of each object, by its name."""
        found = {}
        for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for each in page.get("Contents", []):
                body = self._client.get_object(Bucket=BUCKET, Key=each["Key"])["Body"]
                found[each["Key"]] = each["ETag"], body.read()
        return found

    def put(self, name: str, content: bytes) -> None:
        self._client.put_object(Bucket=BUCKET, Key=name, Body=content)


@contextmanager
def bucket() -> Iterator[tuple[str, Objects, dict[str, str]]]:
    """Serves an empty bucket while the context lasts.

    Yields:
        Its address `s3://bucket`, what it holds, and the environment variables that lead clients
        to it.
    """
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address, region = f"http://{host}:{port}", "us-east-1"
    key = {"aws_access_key_id": "name", "aws_secret_access_key": "secret", "region_name": region}
    client = boto3.client("s3", endpoint_url=address, **key)
    urlopen(Request(f"{address}/moto-api/reset", method="POST")).close()  # of other tests
    client.create_bucket(Bucket=BUCKET)
    variables = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "name",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": region,
    }
    try:
        yield f"s3://{BUCKET}", Objects(client), variables
    finally:
        server.stop()
