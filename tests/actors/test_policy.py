"""The policy against diffusers' own WanPipeline, and its adapter."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel

from actors.config import LoraConfig, PolicyConfig
from actors.lora import lora_parameters
from actors.policy import Policy, velocity
from actors.sde import ode_step, sigma_schedule
from actors.trajectory import weights_checksum
from actors.wan import load_transformer
from tests.actors.conftest import random_weights
from tests.actors.tiny import LAYERS, SHIFT, TEXT_DIM, TOKENS

PROMPTS = ["Camera push in. A red box on the floor.", "A   green &amp; blue ball"]
SHAPE = (2, 16, 3, 4, 6)


def _latents(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pipeline(tiny_wan: Path) -> WanPipeline:
    loaded = WanPipeline.from_pretrained(tiny_wan)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def test_embeddings_are_those_of_the_pipeline(policy: Policy, pipeline: WanPipeline) -> None:
    """Cleaned text, zeros after the last token, cut at the limit; in any batch or order."""
    texts = [*PROMPTS, "", "a red box " * 20]
    expected = pipeline._get_t5_prompt_embeds(texts, max_sequence_length=TOKENS)
    got = policy.encode(texts)
    assert got.shape == (4, TOKENS, TEXT_DIM)
    assert torch.allclose(got, expected, atol=1e-6)
    assert torch.equal(policy.encode(texts[::-1]), got.flip(0))
    assert float(got[2, 2:].abs().max()) == 0.0


def test_a_prompt_that_is_cut_is_said(
    policy_config: PolicyConfig, caplog: pytest.LogCaptureFixture
) -> None:
    short = policy_config.model_copy(update={"max_prompt_tokens": 8})
    policy = Policy.load(short, "cpu", with_decoder=False)
    assert policy.encode(["A box."]).shape[1] == 8
    assert caplog.text == ""
    long = "Camera push in. A red box on a green floor, a blue ball beside it."
    assert policy.encode([long]).shape[1] == 8
    assert f"of which policy.max_prompt_tokens = 8 are seen: {long}" in caplog.text


@torch.no_grad()
def test_ode_sampling_is_the_pipeline(policy: Policy, pipeline: WanPipeline) -> None:
    """Six Euler steps at guidance 5 from the same noise: WanPipeline's latents and pixels."""
    noise = _latents()
    call = {
        "prompt": PROMPTS,
        "height": 32,
        "width": 48,
        "num_frames": 9,
        "num_inference_steps": 6,
        "guidance_scale": 5.0,
        "max_sequence_length": TOKENS,
    }
    expected = pipeline(**call, latents=noise.clone(), output_type="latent").frames
    cond, uncond = policy.encode(PROMPTS), policy.encode_negative()
    sigmas, latents = sigma_schedule(6, SHIFT), noise
    for now, after in itertools.pairwise(sigmas):
        latents = ode_step(latents, policy.velocity(latents, now, cond, uncond), now, after)
    assert float((latents - expected).abs().max()) < 2e-5
    pixels = pipeline(**call, latents=noise.clone(), output_type="np").frames
    video = policy.decode(latents)
    assert video.shape == (2, 9, 32, 48, 3)
    assert video.dtype == torch.uint8
    difference = np.abs(video.numpy().astype(int) - np.round(pixels * 255).astype(int))
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.999


def test_guidance_by_hand(policy: Policy) -> None:
    """v = u + 5·(c - u) of two unguided passes; guidance 1 is the conditional pass alone."""
    latents, cond, uncond = _latents(), policy.encode(PROMPTS), policy.encode_negative()
    c = velocity(policy.transformer, latents, 0.6, cond, None, 1.0)
    u = velocity(policy.transformer, latents, 0.6, uncond, None, 1.0)
    guided = velocity(policy.transformer, latents, 0.6, cond, uncond, 5.0)
    assert torch.allclose(guided, u + 5 * (c - u), atol=1e-5)
    assert guided.dtype == torch.float32
    assert not torch.allclose(c, u, atol=1e-3)
    with pytest.raises(ValueError, match="needs an embedding"):
        velocity(policy.transformer, latents, 0.6, cond, None, 5.0)
    with pytest.raises(ValueError, match=r"only torch\.float32"):
        velocity(policy.transformer, latents.bfloat16(), 0.6, cond, uncond, 5.0)


def test_guidance_in_two_passes_is_that_in_one(policy: Policy, policy_config: PolicyConfig) -> None:
    latents, cond, uncond = _latents(), policy.encode(PROMPTS), policy.encode_negative()
    config = policy_config.model_copy(update={"batched_guidance": False})
    apart = Policy.load(config, "cpu", with_decoder=False, with_text_encoder=False)
    apart.load_lora(policy.lora_weights())
    together = policy.velocity(latents, 0.6, cond, uncond)
    assert torch.allclose(apart.velocity(latents, 0.6, cond, uncond), together, atol=1e-5)


def test_decoding_in_tiles_or_channels_last_changes_no_picture(
    policy: Policy, policy_config: PolicyConfig
) -> None:
    """The tiny clip is one tile; a full-size one is cut, and its seams are blended by diffusers."""
    keys = {"vae_tiling": True, "vae_channels_last": True}
    other = Policy.load(policy_config.model_copy(update=keys), "cpu", with_text_encoder=False)
    assert other._vae is not None
    assert other._vae.use_tiling
    convolutions = [m for m in other._vae.decoder.modules() if isinstance(m, torch.nn.Conv3d)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last_3d) for m in convolutions)
    difference = other.decode(_latents()).int() - policy.decode(_latents()).int()
    assert int(difference.abs().max()) <= 1


def test_the_cache_of_embeddings_is_bounded(policy_config: PolicyConfig) -> None:
    """Without guidance two texts; with it the unconditional branch is encoded along with the first,
    in the same visit of the encoder, and is one of them."""
    config = policy_config.model_copy(update={"cached_prompts": 2, "guidance_scale": 1.0})
    policy = Policy.load(config, "cpu", with_decoder=False)
    for text in ("a", "b", "c"):
        policy.encode([text])
    assert list(policy._embeddings) == ["b", "c"]
    guided = Policy.load(config.model_copy(update={"guidance_scale": 2.0}), "cpu", False)
    guided.encode(["a"])
    assert set(guided._embeddings) == {"a", guided.config.negative_prompt}


def test_sigmas_per_sample_equal_one_at_a_time(policy: Policy) -> None:
    latents, cond, uncond = _latents(), policy.encode(PROMPTS), policy.encode_negative()
    both = policy.velocity(latents, torch.tensor([0.9, 0.4]), cond, uncond)
    for i, sigma in enumerate((0.9, 0.4)):
        alone = policy.velocity(latents[i : i + 1], sigma, cond[i : i + 1], uncond)
        assert torch.allclose(both[i], alone[0], atol=1e-5)


def test_timesteps_reach_a_bfloat16_network_in_float32(policy_config: PolicyConfig) -> None:
    """1000·sigma is not rounded to bfloat16 (where 700.4 would be 700), nor its embedding."""
    policy = Policy.load(policy_config.model_copy(update={"dtype": "bfloat16"}), "cpu")
    embedder = policy.transformer.condition_embedder
    seen: list[torch.Tensor] = []
    embedder.timesteps_proj.register_forward_hook(lambda m, a, out: seen.extend([a[0], out]))
    embedder.time_embedder.register_forward_hook(lambda m, a, out: seen.extend([a[0], out]))
    result = policy.velocity(_latents(), 0.7004, policy.encode(PROMPTS), policy.encode_negative())
    assert [tensor.dtype for tensor in seen] == [torch.float32] * 4
    assert torch.equal(seen[0], torch.full((4,), np.float32(0.7004)) * 1000)
    assert result.dtype == torch.float32
    assert policy.transformer.patch_embedding.weight.dtype == torch.bfloat16


def test_adapter_is_on_every_attention_projection(policy: Policy) -> None:
    """2 attentions x 4 projections per block, each of rank 4 on a width of 24."""
    assert policy.lora_modules_matched == LAYERS * 2 * 4
    assert policy.trainable_parameters == LAYERS * 2 * 4 * (4 * 24 + 24 * 4)
    trained = {n for n, p in policy.transformer.named_parameters() if p.requires_grad}
    assert {name.replace(".default.", ".") for name in trained} == set(policy.lora_weights())
    assert not policy.transformer.training


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapter_is_float32_deterministic_and_starts_as_nothing(
    policy_config: PolicyConfig, tiny_wan: Path, dtype: str
) -> None:
    """Two loads hold the same adapter whatever the global RNG, A is Kaiming, B is zero."""
    config = policy_config.model_copy(update={"dtype": dtype})
    torch.manual_seed(1)
    one = Policy.load(config, "cpu", with_decoder=False)
    torch.manual_seed(2)
    two = Policy.load(config, "cpu", with_decoder=False, with_text_encoder=False)
    assert one.checksum() == two.checksum()
    for name, parameter in lora_parameters(one.transformer).items():
        assert parameter.dtype == torch.float32
        largest = float(parameter.detach().abs().max())
        bound = 1 / np.sqrt(24)  # kaiming_uniform(a=√5) of fan-in 24
        assert largest == 0.0 if "lora_B" in name else 0.5 * bound < largest <= bound
    base = WanTransformer3DModel.from_pretrained(
        tiny_wan, subfolder="transformer", torch_dtype=getattr(torch, dtype)
    )
    cond, uncond = one.encode(PROMPTS), one.encode_negative()
    expected = velocity(base, _latents(), 0.5, cond, uncond, 5.0)
    assert torch.equal(one.velocity(_latents(), 0.5, cond, uncond), expected)


@torch.no_grad()
def test_adapter_disabled_is_the_base_and_comes_back(
    trained_policy: Policy, tiny_wan: Path
) -> None:
    """Inside the context the bits are the base model's; after it, even after an error, not."""
    policy = trained_policy
    cond, uncond = policy.encode(PROMPTS), policy.encode_negative()
    base = WanTransformer3DModel.from_pretrained(tiny_wan, subfolder="transformer")
    expected = velocity(base, _latents(), 0.5, cond, uncond, 5.0)
    adapted = policy.velocity(_latents(), 0.5, cond, uncond)
    assert float((adapted - expected).abs().max()) > 1e-3
    with policy.adapter_disabled():
        assert torch.equal(policy.velocity(_latents(), 0.5, cond, uncond), expected)
    with pytest.raises(ValueError, match="needs an embedding"), policy.adapter_disabled():
        policy.velocity(_latents(), 0.5, cond, None)
    assert torch.equal(policy.velocity(_latents(), 0.5, cond, uncond), adapted)
    assert all(p.requires_grad for p in lora_parameters(policy.transformer).values())


def test_small_float32_updates_survive_in_a_bfloat16_model(policy_config: PolicyConfig) -> None:
    """An update of 1e-4 of a weight, far below bfloat16's resolution, is held and exported."""
    policy = Policy.load(policy_config.model_copy(update={"dtype": "bfloat16"}), "cpu")
    weights = random_weights(policy, seed=1)
    moved = {name: array * np.float32(1.0001) for name, array in weights.items()}
    policy.load_lora(moved)
    assert policy.checksum() == weights_checksum(moved) != weights_checksum(weights)


def test_gradients_reach_the_adapter_alone(trained_policy: Policy) -> None:
    policy = trained_policy
    cond, uncond = policy.encode(PROMPTS), policy.encode_negative()
    policy.velocity(_latents(), 0.5, cond, uncond).square().mean().backward()
    for name, parameter in policy.transformer.named_parameters():
        assert (parameter.grad is not None) == ("lora_" in name), name
    grads = [p.grad for p in lora_parameters(policy.transformer).values()]
    assert all(g is not None and float(g.abs().max()) > 0 for g in grads)


def test_weights_round_trip_from_read_only_arrays(policy: Policy) -> None:
    """What was loaded is what is exported, bit for bit, and exports do not alias the model."""
    weights = random_weights(policy, seed=3)
    for array in weights.values():
        array.setflags(write=False)
    policy.load_lora(weights)
    exported = policy.lora_weights()
    assert weights_checksum(exported) == weights_checksum(weights) == policy.checksum()
    next(iter(exported.values()))[...] = 0.0
    assert policy.checksum() == weights_checksum(weights)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "dtype", "nan"])
def test_weights_that_do_not_fit_are_refused_whole(policy: Policy, fault: str) -> None:
    """The error names the fault, and nothing of the faulty set is loaded."""
    weights = random_weights(policy, seed=4)
    last = max(weights)
    match fault:
        case "missing":
            del weights[last]
        case "unknown":
            weights["blocks.9.attn1.to_q.lora_A.weight"] = weights[last]
        case "shape":
            weights[last] = weights[last].T.copy()[:1]
        case "dtype":
            weights[last] = weights[last].astype(np.float64)
        case "nan":
            weights[last] = np.full_like(weights[last], np.nan)
    before = policy.checksum()
    expected = {"missing": "1 missing", "unknown": "1 unknown", "nan": "NaN"}
    with pytest.raises(ValueError, match=expected.get(fault, "allowed: float32")):
        policy.load_lora(weights)
    assert policy.checksum() == before


def test_a_target_that_matches_nothing_is_refused(policy_config: PolicyConfig) -> None:
    lora = LoraConfig(rank=2, targets=("to_q", "to_query"))
    with pytest.raises(ValueError, match="'to_query', which matches no linear module"):
        Policy.load(policy_config.model_copy(update={"lora": lora}), "cpu")


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer"])
def test_incomplete_directories_are_named(
    policy_config: PolicyConfig, tiny_wan: Path, tmp_path: Path, part: str
) -> None:
    """A pickled checkpoint in place of safetensors counts as missing."""
    copy = shutil.copytree(tiny_wan, tmp_path / "wan")
    for file in (copy / part).iterdir():
        if file.suffix == ".safetensors" or part == "tokenizer":
            file.rename(file.with_name("weights.bin"))
    with pytest.raises(ValueError, match=f"has no {part}/"):
        Policy.load(policy_config.model_copy(update={"model": str(copy)}), "cpu")


@pytest.mark.parametrize("model", ["/nowhere/wan", "wan", "./wan/dir", "a/b/c"])
def test_a_model_that_is_nothing_is_refused(policy_config: PolicyConfig, model: str) -> None:
    with pytest.raises(ValueError, match="neither an existing directory nor a hub id"):
        Policy.load(policy_config.model_copy(update={"model": model}), "cpu")


def test_what_was_not_loaded_or_is_not_finite_is_refused(
    policy_config: PolicyConfig, policy: Policy
) -> None:
    bare = Policy.load(policy_config, "cpu", with_decoder=False, with_text_encoder=False)
    with pytest.raises(ValueError, match="with_text_encoder=False"):
        bare.encode(["a"])
    with pytest.raises(ValueError, match="with_decoder=False"):
        bare.decode(_latents())
    latents = _latents()
    latents[1, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="clip 1 hold NaN"):
        policy.decode(latents)


@pytest.mark.parametrize(
    "other",
    [
        {"boundary_ratio": 0.875, "transformer_2": ["diffusers", "WanTransformer3DModel"]},
        {"expand_timesteps": True},
    ],
)
def test_a_pipeline_of_two_networks_is_refused(tmp_path: Path, other: dict[str, Any]) -> None:
    model = Path(__file__).parents[2] / "toyworld/model"
    for part in model.iterdir():
        (tmp_path / part.name).symlink_to(part)
    index = json.loads((model / "model_index.json").read_text())
    load_transformer(str(tmp_path), torch.float32)
    (tmp_path / "model_index.json").unlink()
    (tmp_path / "model_index.json").write_text(json.dumps(index | other))
    with pytest.raises(ValueError, match=r"two networks or of times per token, such as Wan2\.2"):
        load_transformer(str(tmp_path), torch.float32)
