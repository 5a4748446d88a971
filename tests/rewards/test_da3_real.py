"""The real depth-anything-3 and lpips packages, in their own environment.

Run by hand where `worldr1 envs build reconstruction --cpu` was: `pytest -m hand -k da3_real`; the
folder of another environment may stand in RECONSTRUCTION_ENV. A reduced random network with a
Gaussian head goes through the worker of a run on the CPU; what it predicts is meaningless, that
every number is made from it is the point. The conventions are proven on an answer that the
package's own Gaussian adapter makes from true depth and cameras.
"""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

pytestmark = pytest.mark.hand

ROOT = Path(__file__).resolve().parents[2]


@cache
def found() -> dict[str, Any]:
    """What `da3_in_env.py` printed; run once."""
    home = os.environ.get("RECONSTRUCTION_ENV") or _built()
    with TemporaryDirectory() as scratch:
        done = subprocess.run(
            [f"{home}/bin/python", "-m", "tests.rewards.da3_in_env", f"{scratch}/x"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _built() -> str:
    from rewards.environments import locate

    return str(locate("reconstruction"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_random_network_goes_all_the_way_to_scores(dtype: str) -> None:
    row = found()[dtype]
    assert set(row["parts"]) == {"recon", "traj"}
    assert all(0 <= value <= 1 for value in row["parts"].values())
    assert row["same_again"]
    assert row["raw"]["gaussians"] > 1000
    assert row["raw"]["frames"] == 9
    assert row["raw"]["confidence"] >= 1
    assert row["meta_view"] == [56, 84, 3]
    assert row["rerender"] == [9, 56, 84, 3]
    assert row["depth"] == [9, 56, 84]
    assert row["splats"] > 10_000
    assert row["scorer"].startswith("da3-0.1.1(")


def test_conventions_hold_for_the_packages_own_adapter() -> None:
    """S_traj 1 and the video again, with and without the nested model's metric scale."""
    rows = found()["conventions"]
    assert len(rows) == 6
    for name, row in rows.items():
        assert row["traj"] == pytest.approx(1.0, abs=1e-3), name
        assert row["psnr"] > 22, name
        assert row["median_depth"] == pytest.approx(row["true_depth"], rel=1e-4), name


def test_the_trunk_equals_the_lpips_package() -> None:
    row = found()["lpips"]
    assert row["version"] == "lpips-0.1-alex-package"
    assert row["difference"] <= 1e-6
    assert row["distance"] > 1e-4
    assert row["equal"] == 0.0


def test_failures_are_sentences() -> None:
    reasons = found()["failures"]
    assert "has no Gaussian head" in reasons["no head"]
    assert "neither a folder nor a hub id" in reasons["missing"]
    assert "has no config.json" in reasons["empty"]
