"""The peak of live tensors of a piece of code, storage by storage."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LivePeak(TorchDispatchMode):
    """Counts the bytes of every storage that an operation makes or that is named at the start.

    Works on fake tensors, which have sizes but no memory. FSDP frees what it gathered by resizing
    storages, which no operation shows: `resize_` is watched too.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._sizes: dict[int, int] = {}
        for tensor in held:
            self._see(tensor)

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = weakref.ref(storage, functools.partial(self._drop, key))
            self._resize(key, storage.nbytes())

    def _resize(self, key: int, size: int) -> None:
        self.live += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak = max(self.peak, self.live)

    def _drop(self, key: int, _: object) -> None:
        self.live -= self._sizes.pop(key)
        del self._storages[key]

    def __enter__(self) -> LivePeak:
        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            result = torch._C.StorageBase.resize_(storage, size)
            if storage._cdata in self._storages:
                self._resize(storage._cdata, size)
            return result

        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign, assignment]
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        del torch.UntypedStorage.resize_
        super().__exit__(*error)  # type: ignore[arg-type]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf)
        return result
