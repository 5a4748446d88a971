"""Freed memory is used again without a page fault."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from learner.allocator import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide themselves")
def test_memory_that_was_freed_is_not_faulted_in_again() -> None:
    """Sixteen tensors of 8 MiB, allocated, written and freed: 32,768 pages, of which none is new
    the second time."""
    assert keep_freed_memory()
    faults = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        tensors = [torch.ones(2 << 20) for _ in range(16)]
        del tensors
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults[1:]) < 100, faults
