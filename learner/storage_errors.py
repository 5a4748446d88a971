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
_CLIENTS = {"botocore", "aiobotocore", "aiohttp"}


def is_transient(error: BaseException) -> bool:
    """Whether waiting may help: I/O errors of the system, and the families of the clients of object
    stores, which do not derive from OSError where the endpoint cannot be reached."""
    if isinstance(error, _PERMANENT):
        return False
    family = type(error).__module__.split(".")[0]
    return isinstance(error, OSError) or family in _CLIENTS
