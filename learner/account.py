"""The learner's account of what entered its weights: a hash chain that is saved with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

EMPTY_ACCOUNT = "0" * 64
"""Account of untrained weights."""


def extend_account(account: str, step: int, applied: Sequence[tuple[int, int]]) -> str:
    """The account after `step` applied the gradients of some samples (group, member), ascending.

    SHA-256 over the account before it and the compact JSON of [step, samples]; hex.
    """
    entry = json.dumps([step, [list(key) for key in applied]], separators=(",", ":"))
    return hashlib.sha256(f"{account}{entry}".encode("ascii")).hexdigest()
