"""Which failures of a store are waited for, and that a shard's writer tells them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from learner import fsdp
from learner.fsdp import load_sharded, save_sharded
from learner.storage_errors import StoreRefused, first_cause, is_transient


def of_client(family: str, **attributes: Any) -> Exception:
    """An error whose class belongs to a client library."""
    kind = type("HttpError", (Exception,), {"__module__": f"{family}.errors"})
    error: Exception = kind("the store answers")
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (OSError("503"), True),
        (TimeoutError("no answer"), True),
        (FileNotFoundError("no such key"), False),
        (PermissionError("denied"), False),
        (StoreRefused("refused"), False),
        (ValueError("a bug"), False),
        (of_client("botocore"), True),
        (of_client("gcsfs", code=503), True),
        (of_client("gcsfs", code=429), True),
        (of_client("gcsfs", code=400), False),
        (of_client("azure", status_code=None), True),
        (of_client("azure", status_code=500), True),
        (of_client("azure", status_code=409), False),
        (of_client("google", retryable=True), True),
        (of_client("google", retryable=False), False),
        (of_client("aiohttp", status=408), True),
        (of_client("aiohttp", status=403), False),
        (of_client("other", code=503), False),
    ],
)
def test_what_waiting_may_mend(error: Exception, transient: bool) -> None:
    assert is_transient(error) == transient


def test_the_store_is_found_behind_what_hides_it() -> None:
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904  # as torch does
    except RuntimeError as error:
        found = first_cause(error)
    assert isinstance(found, OSError)
    assert found.errno == 28
    bug = RuntimeError("a bug")
    assert first_cause(bug) is bug


class _Halfway(LocalFileSystem):
    """A disk that is full after some bytes of a shard, for a number of times."""

    protocol = "halfway"
    room = 100_000
    failures = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:  # type: ignore[override]
        return str(super()._strip_protocol(str(path).replace("halfway://", "")))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        opened = super()._open(path, mode, **kwargs)
        if "w" in mode and path.endswith(".distcp") and type(self).failures:
            type(self).failures -= 1
            write, written = opened.write, 0

            def limited(data: bytes) -> Any:
                nonlocal written
                written += len(data)
                if written > type(self).room:
                    raise OSError(28, "No space left on device")
                return write(data)

            opened.write = limited
        return opened


def test_a_disk_that_is_full_half_way_through_a_shard_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("halfway", _Halfway, clobber=True)
    monkeypatch.setattr(fsdp.time, "sleep", lambda _: None)
    url = f"halfway://{tmp_path}/state"
    state: dict[str, object] = {"x": torch.arange(200_000.0)}
    _Halfway.failures = fsdp.SAVE_ATTEMPTS - 1
    save_sharded(url, state)
    assert _Halfway.failures == 0
    read: dict[str, object] = {"x": torch.zeros(200_000)}
    load_sharded(f"{tmp_path}/state", read)
    assert torch.equal(read["x"], state["x"])  # type: ignore[arg-type]
    _Halfway.failures = fsdp.SAVE_ATTEMPTS
    with pytest.raises(OSError, match=r"No space left on device") as raised:
        save_sharded(url, state)
    assert is_transient(raised.value), "the saver repeats it at a later step"
