"""Keyed seeds: every random draw of a rollout has a name, so that no draw depends on another."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def keyed_seed(*key: int | str) -> int:
    """A seed in [0, 2^63) from a key such as ("window", run seed, group, member, step).

    The first eight bytes of the SHA-256 of the key's compact JSON, without the top bit: stable
    across machines, processes and versions, and different for ("1",) and (1,). torch's CPU
    generator takes the lower 32 bits alone: of a million draws some are the same stream.
    """
    text = json.dumps(key, separators=(",", ":"), ensure_ascii=True)
    digest = hashlib.sha256(text.encode("ascii")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU generator at `keyed_seed(*key)`; on the CPU, so that a GPU draws the same noise."""
    import torch  # seconds that programs which only need seeds do not spend

    return torch.Generator("cpu").manual_seed(keyed_seed(*key))
