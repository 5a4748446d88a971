"""Types of GPU that a run is planned for: memory and rate by the vendor's data sheets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuType:
    """One type of GPU."""

    name: str
    ray_name: str
    """As Ray names it, and as a word of the driver's name of the device."""
    memory: int
    """Bytes that CUDA reports."""
    bf16: float
    """Dense bfloat16 operations per second."""
    link: float = 300e9
    """Bytes per second between GPUs of a node that a collective reaches; an allowance."""

    @property
    def tf32(self) -> float:
        """TensorFloat-32 operations per second: half the bfloat16 rate, on all three types."""
        return self.bf16 / 2

    def usable(self) -> int:
        """Bytes that a pool may plan with: an allocator loses about a tenth between tensors."""
        return int(0.9 * self.memory)


GPU_TYPES = {
    "h200": GpuType("h200", "H200", 150_700_000_000, 989e12),
    "h100": GpuType("h100", "H100", 85_000_000_000, 989e12),
    "a100-80g": GpuType("a100-80g", "A100", 85_000_000_000, 312e12, link=200e9),
}
NETWORK = 40e9
"""Bytes per second between nodes for each GPU (400 Gbit/s cards, 80 %); an allowance."""
