"""Every test process pins its threads: results on a CPU depend on their number in the last bit."""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import torch  # noqa: E402  after the variables that it reads

torch.set_num_threads(1)
