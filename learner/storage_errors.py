"""Which errors of a store waiting may mend; torch-free, since the coordinator asks too."""

from __future__ import annotations


class StoreRefused(OSError):
    """What ranks did together failed on one of them for a reason that waiting does not mend."""


_PERMANENT = (
    StoreRefused,
    FileNotFoundError,
    NotADirectoryError,
    IsADirectoryError,
    PermissionError,
)
_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "gcsfs", "azure"}
_STATUS = ("code", "status_code", "status")
"""Attributes in which errors of gcsfs, azure-core and aiohttp have the HTTP status."""
_WAIT = {408, 429}
"""Statuses of a client's error that waiting may mend all the same."""


def is_transient(error: BaseException) -> bool:
    """Whether waiting may help: I/O errors of the system, and the families of the clients of object
    stores, which do not derive from OSError where the endpoint cannot be reached; but not what the
    store says is the caller's fault."""
    if isinstance(error, _PERMANENT):
        return False
    if isinstance(error, OSError):
        return True
    family = type(error).__module__.split(".")[0]
    if family == "google":  # of credentials; whether they may come is said by all but the network's
        return type(error).__name__ == "TransportError" or bool(getattr(error, "retryable", False))
    if family not in _CLIENTS:
        return False
    statuses = [s for name in _STATUS if isinstance(s := getattr(error, name, None), int)]
    return all(status in _WAIT or not 400 <= status < 500 for status in statuses)


def first_cause(error: BaseException) -> BaseException:
    """The store's error that another one hides: torch's zip writer, closed half way, raises a
    RuntimeError of its own over it. The error itself where there is none."""
    hidden: BaseException | None = error
    while hidden is not None:
        if isinstance(hidden, OSError) or is_transient(hidden):
            return hidden
        hidden = hidden.__cause__ or hidden.__context__
    return error
