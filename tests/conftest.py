"""Every test process pins its threads: results on a CPU depend on their number in the last bit."""

from __future__ import annotations

import os
from collections.abc import Iterator

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import pytest  # noqa: E402  after the variables that torch reads
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket on a server that speaks S3, on loopback, for one test."""
    import s3fs
    from moto.server import ThreadedMotoServer

    from benchmarks.faulty_store import empty_bucket

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for key, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    # File systems are cached by URL: one of an earlier test would talk to that test's server.
    s3fs.S3FileSystem.clear_instance_cache()
    empty_bucket(f"http://{host}:{port}", "bucket")
    try:
        yield "s3://bucket"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()
