"""The real HPSv3 package in its own environment, in an actor of the aesthetic pool, on a CPU.

The weights are a tiny random Qwen2-VL's: shown is the way of a clip to its score, not taste.
Run by hand, since CI builds the judge's environment alone:
`worldr1 envs build aesthetic --cpu; pytest -m hand tests/cluster/test_aesthetic_served.py`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.config import LOOPBACK, load
from prompts.motions import Motion
from rewards.environments import check, locate, python_of
from rewards.score import Score, ScoreFailure
from tests.rewards import tiny_hpsv3
from tests.rewards.clips import clip

pytestmark = [pytest.mark.cluster, pytest.mark.hand]
SCRIPT = tiny_hpsv3.__file__


def package_says(*arguments: str) -> str:
    done = subprocess.run(
        [python_of("aesthetic"), SCRIPT, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def test_a_clip_is_scored_as_the_package_itself_scores_its_frames(tmp_path: Path) -> None:
    """K = 3 of 9 frames, in batches of 2: the mean of what the package says of each alone."""
    import ray

    from cluster.handles import ray_rewards

    check("aesthetic", locate("aesthetic"))
    model = tmp_path / "tiny-random-qwen2-vl"
    package_says("build", str(model))
    config = load(
        "toy",
        [
            "rewards.aesthetic.backend=hpsv3",
            "rewards.aesthetic.env=aesthetic",
            f"rewards.aesthetic.model={model / tiny_hpsv3.WEIGHTS}",
            f"rewards.aesthetic.base={model}",
            "rewards.aesthetic.frames=3",
            "rewards.aesthetic.batch=2",
            "rewards.aesthetic.offset=-3.0",
            "rewards.aesthetic.scale=20.0",
        ],
    )
    shots = [clip(Motion.PUSH_IN), clip(Motion.ORBIT_LEFT, seed=7)]

    async def answers(pool: Any) -> list[Score | ScoreFailure]:
        return [await pool.call("score", shot.video, shot.prompt) for shot in shots]

    ray.init(
        num_cpus=4, include_dashboard=False, log_to_driver=False, _node_ip_address=LOOPBACK,
        object_store_memory=80 * 2**20,
    )  # fmt: skip
    try:
        with asyncio.Runner() as runner, ray_rewards(config) as rewards:
            found = runner.run(asyncio.wait_for(answers(rewards.pools["aesthetic"]), 300))
    finally:
        ray.shutdown()
    raws = []
    for shot, score in zip(shots, found, strict=True):
        assert isinstance(score, Score), score
        assert score.scorer == f"hpsv3-1.0.0:{model / tiny_hpsv3.WEIGHTS}"
        np.save(tmp_path / "frames.npy", shot.video[:3])
        alone = json.loads(
            package_says("score", str(model), str(tmp_path / "frames.npy"), shot.prompt.text)
        )
        mu, sigma = np.mean(alone, axis=0)
        raws.append(score.raw["aesthetic_raw"])
        assert raws[-1] == pytest.approx(mu, abs=1e-3)
        assert score.raw["aesthetic_sigma"] == pytest.approx(sigma, abs=1e-3)
        assert score.parts["gen"] == pytest.approx(np.clip((mu + 3) / 20, -1, 1), abs=1e-4)
    print(f"raw scores {raws}")
    assert abs(raws[0] - raws[1]) > 0.01, "the scorer has to see the pictures"
