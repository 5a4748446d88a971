"""The rollout worker: what it answers, and which weights it holds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.config import PolicyConfig, RolloutConfig
from actors.policy import Policy
from actors.sde import schedule_hash, sigma_schedule
from actors.trajectory import (
    RolloutReport,
    RolloutRequest,
    Trajectory,
    WeightsVersion,
    load_trajectory,
    require_float32,
    save_trajectory,
    weights_checksum,
)
from actors.worker import RolloutWorker
from prompts.config import CameraConfig
from prompts.schema import Prompt
from tests.actors.conftest import random_weights

PROMPT = Prompt.from_text("p", "Camera orbit left. A red box.")
REQUEST = RolloutRequest(group=5, prompt=PROMPT, members=3, seed=2, window_start=1)


@pytest.fixture(scope="module")
def worker(policy_config: PolicyConfig, rollout_config: RolloutConfig) -> RolloutWorker:
    return RolloutWorker(policy_config, rollout_config, CameraConfig(), "cpu", threads=1)


@pytest.fixture
def weights(policy: Policy) -> dict[str, np.ndarray]:
    return random_weights(policy, seed=1)


def _version(weights: dict[str, np.ndarray], step: int = 1) -> WeightsVersion:
    return WeightsVersion(step=step, lineage="first", checksum=weights_checksum(weights))


def test_description_agrees_with_the_policy(worker: RolloutWorker, policy: Policy) -> None:
    info = worker.describe()
    assert info.name.endswith(f":{os.getpid()}")
    assert info.schedule_hash == schedule_hash(sigma_schedule(8, 3.0))
    assert info.lora_modules_matched == policy.lora_modules_matched
    assert info.trainable_parameters == policy.trainable_parameters
    assert torch.get_num_threads() == 1


def test_rollout_answers_report_trajectories_and_videos(
    worker: RolloutWorker, weights: dict[str, np.ndarray]
) -> None:
    """1 + 2 G values; the report and every trajectory carry what was really sampled from."""
    version = _version(weights)
    report, *rest = worker.rollout(REQUEST, version, weights)
    assert isinstance(report, RolloutReport)
    assert (report.group, report.members, report.window_start) == (5, 3, 1)
    assert report.weights == version
    assert set(report.seconds) == {"noise", "prefix", "branches", "decode"}
    trajectories, videos = rest[:3], rest[3:]
    assert len(videos) == 3
    for member, trajectory in enumerate(trajectories):
        assert isinstance(trajectory, Trajectory)
        require_float32(trajectory)
        meta = trajectory.meta
        assert (meta.group, meta.member, meta.prompt_id, meta.seed) == (5, member, "p", 2)
        assert (meta.window_start, meta.kernel, meta.noise_level) == (1, "sde", 0.7)
        assert (meta.guidance_scale, meta.prompt_text) == (5.0, PROMPT.text)
        assert meta.schedule_hash == schedule_hash(trajectory.sigmas)
        assert meta.weights == version
        assert trajectory.states.shape == (3, 16, 3, 4, 6)
        assert trajectory.means.shape == (2, 16, 3, 4, 6)
        assert trajectory.log_probs.shape == (2,)
        # A view would ship the whole group with every member.
        assert trajectory.states.untyped_storage().nbytes() == 4 * trajectory.states.numel()
    for video in videos:
        assert isinstance(video, np.ndarray)
        assert (video.shape, video.dtype) == ((9, 32, 48, 3), np.uint8)
        assert video.flags.owndata


def test_a_member_that_diverges_is_reported_and_the_others_are_sampled(
    worker: RolloutWorker, weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Member 1 of 3 leaves the branches' first step with NaN: its group keeps the others' bits."""
    policy = worker._policy
    bind, broken = policy.bind, 1

    def diverging(prompts: Sequence[Prompt]) -> Callable[[Tensor, Tensor], Tensor]:
        velocity = bind(prompts)

        def bound(latents: Tensor, sigma: Tensor) -> Tensor:
            found = velocity(latents, sigma)
            if len(found) == REQUEST.members:
                found[broken] = torch.nan
            return found

        return bound

    _, *expected = worker.rollout(REQUEST, _version(weights), weights)
    monkeypatch.setattr(policy, "bind", diverging)
    report, *rest = worker.rollout(REQUEST, _version(weights), weights)
    assert isinstance(report, RolloutReport)
    assert report.non_finite == (broken,)
    videos, others = rest[3:], expected[3:]
    for member in (0, 2):
        assert np.array_equal(videos[member], others[member])
    assert videos[broken].shape == others[broken].shape


def test_the_same_request_gives_the_same_bits_anywhere(
    worker: RolloutWorker,
    policy_config: PolicyConfig,
    rollout_config: RolloutConfig,
    weights: dict[str, np.ndarray],
) -> None:
    """A restarted worker, and one that has done other work and held other weights since."""
    first = worker.rollout(REQUEST, _version(weights), weights)
    other = {name: array + np.float32(0.1) for name, array in weights.items()}
    changed = worker.rollout(REQUEST, _version(other, step=2), other)
    again = worker.rollout(REQUEST, _version(weights), weights)
    fresh = RolloutWorker(policy_config, rollout_config, CameraConfig(), "cpu", threads=1)
    restarted = fresh.rollout(REQUEST, _version(weights), weights)
    for i in range(1, 4):
        for repeated in (again, restarted):
            assert torch.equal(first[i].states, repeated[i].states)
            assert torch.equal(first[i].log_probs, repeated[i].log_probs)
            assert np.array_equal(first[i + 3], repeated[i + 3])
        assert not torch.equal(first[i].states, changed[i].states)


def test_weights_are_loaded_only_for_another_version(
    worker: RolloutWorker, weights: dict[str, np.ndarray]
) -> None:
    """A held version ignores the tensors; a lying checksum is answered with the true one."""
    version = _version(weights, step=7)
    worker.rollout(REQUEST, version, weights)
    assert worker.rollout(REQUEST, version, {})[0].weights == version
    lie = WeightsVersion(step=8, lineage="first", checksum="0" * 64)
    assert worker.rollout(REQUEST, lie, weights)[0].weights.checksum == version.checksum
    assert worker.describe().weights_checksum == version.checksum


def test_weights_can_be_loaded_ahead_of_a_rollout(
    worker: RolloutWorker, weights: dict[str, np.ndarray]
) -> None:
    """`load_weights` answers the checksum held; the next rollout of it reads no tensors."""
    version = _version(weights, step=12)
    assert worker.load_weights(version, weights) == version.checksum
    assert worker.rollout(REQUEST, version, {})[0].weights == version


def test_refused_weights_do_not_pass_for_the_version_before(
    worker: RolloutWorker, weights: dict[str, np.ndarray]
) -> None:
    version = _version(weights, step=9)
    worker.rollout(REQUEST, version, weights)
    with pytest.raises(ValueError, match="missing"):
        worker.rollout(REQUEST, _version(weights, step=10), {})
    with pytest.raises(ValueError, match="missing"):
        worker.rollout(REQUEST, version, {})


def test_read_only_weights_and_evaluation_videos(
    worker: RolloutWorker, weights: dict[str, np.ndarray]
) -> None:
    """Object-store memory is read-only: no warning, no error; samples are keyed on the seed."""
    for array in weights.values():
        array.setflags(write=False)
    version = _version(weights, step=11)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        held, *videos = worker.sample([PROMPT, PROMPT], [1, 2], version, weights)
    assert held == version
    assert [video.shape for video in videos] == [(9, 32, 48, 3)] * 2
    assert not np.array_equal(videos[0], videos[1])
    _, repeated = worker.sample([PROMPT], [2], version, weights)
    difference = np.abs(repeated.astype(int) - videos[1].astype(int))
    assert difference.max() <= 1


def test_trajectories_survive_the_disk(
    worker: RolloutWorker, weights: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """Saved and loaded for replay: the same bits and metadata, whatever becomes of the file."""
    trajectory, other = worker.rollout(REQUEST, _version(weights), weights)[1:3]
    assert isinstance(trajectory, Trajectory)
    assert isinstance(other, Trajectory)
    path = tmp_path / "t.safetensors"
    save_trajectory(trajectory, path)
    save_trajectory(other, tmp_path / "other.safetensors")
    loaded = load_trajectory(path)
    path.write_bytes((tmp_path / "other.safetensors").read_bytes())
    assert loaded.meta == trajectory.meta
    for name in ("sigmas", "states", "means", "log_probs"):
        assert torch.equal(getattr(loaded, name), getattr(trajectory, name))
