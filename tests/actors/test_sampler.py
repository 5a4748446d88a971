"""Flow-GRPO-Fast: what is stored is the density that was sampled from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline

from actors.config import RolloutConfig
from actors.noise_transport import initial_latents
from actors.policy import Policy
from actors.sampler import GroupSamples, sample_group, sample_ode
from actors.sde import log_prob, ode_step, residual, sigma_schedule, step_moments
from actors.seeds import keyed_generator, keyed_seed
from actors.trajectory import RolloutRequest
from prompts.camera import requested_path
from prompts.config import CameraConfig
from prompts.schema import Prompt
from tests.actors.tiny import SHIFT, TOKENS

PROMPT = Prompt.from_text("p", "Camera push in. A red box on the floor.")
REQUEST = RolloutRequest(group=3, prompt=PROMPT, members=4, seed=11, window_start=2)
CPU = torch.device("cpu")


def _bind(policy: Policy):
    def bind(prompts):
        cond = policy.encode([prompt.text for prompt in prompts])
        uncond = policy.encode_negative()
        return lambda latents, sigma: policy.velocity(latents, sigma, cond, uncond)

    return bind


def _sample(policy: Policy, config: RolloutConfig, request=REQUEST) -> GroupSamples:
    velocity = _bind(policy)([request.prompt])
    return sample_group(velocity, request, config, CameraConfig(), CPU)


@pytest.mark.parametrize("steps", [6, 50])
def test_an_empty_window_is_the_pipeline(policy: Policy, tiny_wan: Path, steps: int) -> None:
    """Evaluation samples equal WanPipeline's with its flow-match Euler scheduler, to 1e-5.

    Two prompts, one with a camera path, guidance 5, from the same transported noise.
    """
    pipeline = WanPipeline.from_pretrained(tiny_wan)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [PROMPT, Prompt.from_text("q", "A blue ball.")]
    config, camera = RolloutConfig(height=32, width=48, frames=9, shift=SHIFT), CameraConfig()
    samples = sample_ode(_bind(policy), prompts, [1, 2], config, camera, CPU, steps)
    noise = [
        initial_latents(
            requested_path(prompt, 9), config.latent_shape, camera, 32, 48,
            keyed_seed("evaluation", seed),
        )
        for prompt, seed in zip(prompts, (1, 2), strict=True)
    ]  # fmt: skip
    expected = pipeline(
        prompt=[prompt.text for prompt in prompts], height=32, width=48, num_frames=9,
        num_inference_steps=steps, guidance_scale=5.0, max_sequence_length=TOKENS,
        latents=torch.stack(noise), output_type="latent",
    ).frames  # fmt: skip
    assert float((samples - expected).abs().max()) < 1e-5
    assert float(expected.abs().max()) > 1


@pytest.mark.parametrize("shared", [True, False])
def test_forwards_of_a_group(rollout_config: RolloutConfig, shared: bool) -> None:
    """Clips that pass the network for G = 4, 8 steps, start 2: 2 + 1 + 4·5 shared, 4·8
    otherwise."""
    passed = 0

    def counting(latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        nonlocal passed
        passed += len(latents)
        return -latents

    config = rollout_config.model_copy(update={"shared_prefix": shared, "max_batch": 3})
    sample_group(counting, REQUEST, config, CameraConfig(), CPU)
    assert passed == (2 + 1 + 4 * 5 if shared else 4 * 8)


@pytest.mark.parametrize("kernel", ["sde", "cps", "dance"])
@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_the_ratio_is_one_at_every_stored_step(
    trained_policy: Policy, rollout_config: RolloutConfig, kernel: str, shared: bool
) -> None:
    """Velocity and kernel recomputed from the stored states, all members in one batch of 4.

    log p agrees to 1e-6, the residuals to 1e-4 with the noises that were drawn, and so
    x' = mean + std·noise.
    """
    config = rollout_config.model_copy(
        update={"kernel": kernel, "shared_prefix": shared, "max_batch": 3}
    )
    samples = _sample(trained_policy, config)
    velocity = _bind(trained_policy)([PROMPT])
    for i, step in enumerate(range(2, 4)):
        before, after = samples.states[:, i], samples.states[:, i + 1]
        now, then = samples.sigmas[step], samples.sigmas[step + 1]
        level = config.resolved_noise_level
        v = velocity(before.contiguous(), now)
        mean, std = step_moments(kernel, before, v, now, then, samples.sigmas[1], level)
        assert torch.allclose(mean, samples.means[:, i], atol=1e-5)
        again = log_prob(after, mean, std)
        assert float((again - samples.log_probs[:, i]).abs().max()) < 1e-6
        noise = torch.stack(
            [
                torch.randn(before.shape[1:], generator=keyed_generator("window", 11, 3, m, step))
                for m in range(4)
            ]
        )
        assert float((residual(after, mean, std) - noise).abs().max()) < 1e-4
        assert torch.equal(samples.means[:, i] + std * noise, after)


def test_shared_prefix_is_shared_until_the_window(
    trained_policy: Policy, rollout_config: RolloutConfig
) -> None:
    """At the window's start all members have the same bits; one step later no two do."""
    samples = _sample(trained_policy, rollout_config)
    assert samples.states.shape == (4, 3, 16, 3, 4, 6)
    for member in range(1, 4):
        assert torch.equal(samples.states[member, 0], samples.states[0, 0])
        assert not torch.allclose(samples.states[member, 1], samples.states[0, 1], atol=0.01)
        assert not torch.allclose(samples.latents[member], samples.latents[0], atol=0.01)


def test_own_prefixes_differ_from_the_start(
    trained_policy: Policy, rollout_config: RolloutConfig
) -> None:
    config = rollout_config.model_copy(update={"shared_prefix": False})
    start = _sample(trained_policy, config).states[:, 0]
    for member in range(1, 4):
        assert not torch.allclose(start[member], start[0], atol=0.1)


@torch.no_grad()
def test_steps_outside_the_window_are_the_ode(
    trained_policy: Policy, rollout_config: RolloutConfig
) -> None:
    """From the window's last state, Euler steps lead to the finished latents."""
    samples = _sample(trained_policy, rollout_config)
    velocity, x = _bind(trained_policy)([PROMPT]), samples.states[:, -1].contiguous()
    for step in range(4, 8):
        now, after = samples.sigmas[step], samples.sigmas[step + 1]
        x = ode_step(x, velocity(x, now), now, after)
    assert torch.allclose(x, samples.latents, atol=1e-6)


@pytest.mark.parametrize("shared", [True, False])
def test_results_do_not_depend_on_the_batch(
    trained_policy: Policy, rollout_config: RolloutConfig, shared: bool
) -> None:
    """Batches of 1, 3 and 8 clips: equal beyond float rounding; the same batch: equal bits."""
    config = rollout_config.model_copy(update={"shared_prefix": shared})
    whole = _sample(trained_policy, config)
    again = _sample(trained_policy, config)
    for name in ("states", "means", "log_probs", "latents"):
        assert torch.equal(getattr(whole, name), getattr(again, name)), name
    for size in (1, 3, 8):
        split = _sample(trained_policy, config.model_copy(update={"max_batch": size}))
        assert float((split.latents - whole.latents).abs().max()) < 1e-4
        assert float((split.log_probs - whole.log_probs).abs().max()) < 1e-6


def test_members_do_not_depend_on_how_many_there_are(
    trained_policy: Policy, rollout_config: RolloutConfig
) -> None:
    """Member 1 of a group of 2 is member 1 of a group of 4; another group or seed is not."""
    whole = _sample(trained_policy, rollout_config)
    pair = RolloutRequest(group=3, prompt=PROMPT, members=2, seed=11, window_start=2)
    assert torch.allclose(
        _sample(trained_policy, rollout_config, pair).latents[1], whole.latents[1], atol=1e-4
    )
    for group, seed in ((4, 11), (3, 12)):
        other = RolloutRequest(group=group, prompt=PROMPT, members=2, seed=seed, window_start=2)
        moved = _sample(trained_policy, rollout_config, other)
        assert not torch.allclose(moved.states[0, 0], whole.states[0, 0], atol=0.1)


@pytest.mark.parametrize("start", [-1, 6, 7])
def test_windows_outside_the_schedule_are_refused(
    policy: Policy, rollout_config: RolloutConfig, start: int
) -> None:
    """8 steps, window of 2: starts 0 to 5; the final step is never stochastic."""
    request = RolloutRequest(group=0, prompt=PROMPT, members=2, seed=0, window_start=start)
    with pytest.raises(ValueError, match="0 to 5"):
        _sample(policy, rollout_config, request)


@torch.no_grad()
def test_evaluation_samples_depend_on_prompt_and_seed_alone(
    trained_policy: Policy, rollout_config: RolloutConfig
) -> None:
    """A batch of different prompts equals each alone; the schedule has its own step count."""
    prompts = [PROMPT, Prompt.from_text("q", "A blue ball."), PROMPT]
    arguments = (CameraConfig(), CPU)
    config = rollout_config.model_copy(update={"max_batch": 2})
    whole = sample_ode(_bind(trained_policy), prompts, [1, 1, 2], config, *arguments, steps=5)
    for i, seed in enumerate((1, 1, 2)):
        alone = sample_ode(
            _bind(trained_policy), prompts[i : i + 1], [seed], config, *arguments, steps=5
        )
        assert torch.allclose(whole[i], alone[0], atol=1e-4)
    assert not torch.allclose(whole[0], whole[2], atol=0.1)
    assert len(sigma_schedule(5, config.shift)) == 6
    with pytest.raises(ValueError, match="one seed each"):
        sample_ode(_bind(trained_policy), prompts, [1], config, *arguments, steps=5)
