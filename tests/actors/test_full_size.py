"""Wan2.1 at its full size without its weights: the meta device against numbers worked out by hand.

D = 1536, F = 8960, 30 blocks (1.3B); D = 5120, F = 13824, 40 blocks (14B); both read text of width
4096 and time of 256 frequencies. A clip is 81 frames of 480 x 832.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch.utils.flop_counter import FlopCounterMode
from transformers import UMT5Config, UMT5EncoderModel

from actors import wan
from actors.config import LoraConfig, PolicyConfig, RolloutConfig
from actors.lora import add_lora, lora_parameters
from actors.policy import Policy
from actors.wan_shape import (
    KNOWN,
    TEXT_ENCODER_PARAMETERS,
    VAE_PARAMETERS,
    WAN21_1_3B,
    WAN21_14B,
    WanShape,
    decoder_flops,
    learner_flops,
    read_shape,
)

SIZES = {"1.3B": WAN21_1_3B, "14B": WAN21_14B}
TARGETS = LoraConfig().targets
TOKENS = 21 * 30 * 52


@pytest.mark.parametrize(
    ("size", "block", "total", "modules", "trained", "gigabytes"),
    [
        # 8·1536² + 2·1536·8960 + 21·1536 + 8960, thirty times; 8·1536² + 4493·1536 + 64 around.
        ("1.3B", 46_440_704, 1_418_996_800, 240, 240 * 32 * 3072, 2.844),
        # 8·5120² + 2·5120·13824 + 21·5120 + 13824, forty times; 8·5120² + 4493·5120 + 64 around.
        ("14B", 351_394_304, 14_288_491_584, 320, 320 * 32 * 10240, 28.635),
    ],
)
def test_parameters_and_adapters(
    size: str, block: int, total: int, modules: int, trained: int, gigabytes: float
) -> None:
    """q, k, v, out of self- and cross-attention of every block, rank 32; bytes in bfloat16."""
    shape = SIZES[size]
    model = wan.meta_transformer(shape, torch.bfloat16)
    assert sum(p.numel() for p in model.blocks[0].parameters()) == block == shape.block_parameters
    assert sum(p.numel() for p in model.parameters()) == total == shape.parameters
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    assert held == shape.weight_bytes("bfloat16") == pytest.approx(gigabytes * 1e9, rel=1e-3)
    assert add_lora(model, LoraConfig()) == modules == shape.lora_modules(TARGETS)
    adapter = lora_parameters(model)
    assert sum(p.numel() for p in adapter.values()) == trained
    assert shape.lora_parameters(32, TARGETS) == trained
    for number in range(shape.layers):
        for attention in ("attn1", "attn2"):
            for projection in ("to_q", "to_k", "to_v", "to_out.0"):
                for side in ("lora_A", "lora_B"):
                    name = f"blocks.{number}.{attention}.{projection}.{side}.weight"
                    assert adapter.pop(name).dtype == torch.float32
    assert not adapter


def test_the_toy_targets_are_counted_too() -> None:
    """With the feed-forward network: two more modules, (D + F)·r each."""
    shape = WanShape(heads=2, head_dim=64, ffn_dim=256, layers=6, text_dim=48)
    targets = (*TARGETS, "ffn.net.0.proj", "ffn.net.2")
    model = wan.meta_transformer(shape, torch.float32)
    matched = add_lora(model, LoraConfig(rank=8, targets=targets))
    assert matched == shape.lora_modules(targets) == 60
    trained = sum(p.numel() for p in lora_parameters(model).values())
    assert trained == shape.lora_parameters(8, targets) == 6 * 8 * (8 * 256 + 2 * 384)


@pytest.mark.parametrize("size", SIZES)
def test_forward_flops_are_what_torch_counts(size: str) -> None:
    """One clip without adapter on the meta device, attention as matrix products; 1.3B: 283 TFLOP,
    of which 201 in attention."""
    shape = SIZES[size]
    model = wan.meta_transformer(shape, torch.bfloat16)
    latents = torch.empty(1, *RolloutConfig().latent_shape, device="meta", dtype=torch.bfloat16)
    text = torch.empty(1, 512, 4096, device="meta", dtype=torch.bfloat16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(latents, torch.empty(1, device="meta"), text, return_dict=False)
    linear, attention = shape.forward_flops(TOKENS, 512)
    # The patch embedding is a convolution, counted alike.
    assert counter.get_total_flops() == pytest.approx(linear + attention, rel=1e-9)
    if size == "1.3B":
        assert linear == pytest.approx(82.2e12, rel=0.01)
        assert attention == pytest.approx(200.9e12, rel=0.01)
        assert learner_flops(shape, TOKENS, 512) == pytest.approx(1.05e15, rel=0.01)


def test_decoder_flops_are_what_torch_counts() -> None:
    with torch.device("meta"):
        vae = AutoencoderKLWan().eval()
    for frames, height, width in ((1, 64, 64), (9, 64, 96), (13, 96, 64)):
        latents = torch.empty(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8, device="meta")
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            vae.decode(latents, return_dict=False)
        assert counter.get_total_flops() == decoder_flops(frames, height, width)
    vae.enable_tiling()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae.decode(torch.empty(1, 16, 1, 40, 60, device="meta"), return_dict=False)
    assert counter.get_total_flops() == decoder_flops(1, 320, 480, tiled=True)
    # 6,240 cells x (0.688 + 20 x 2.162) GFLOP, and 1.3 TFLOP of attention.
    assert decoder_flops(81, 480, 832) == pytest.approx(275.4e12, rel=2e-3)


def test_latents_and_tokens_of_a_clip() -> None:
    rollout = RolloutConfig()
    assert (rollout.height, rollout.width, rollout.frames) == (480, 832, 81)
    assert rollout.latent_shape == (16, 21, 60, 104)
    assert WAN21_1_3B.tokens(rollout.latent_frames, 480, 832) == TOKENS == 32_760


def test_text_encoder_and_vae_are_as_large_as_stated() -> None:
    """UMT5-XXL: 256384·4096 + 24·(4·4096² + 3·4096·10240 + 2·4096 + 32·64) + 4096."""
    with torch.device("meta"):
        encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=256384, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip
        vae = AutoencoderKLWan()
    assert sum(p.numel() for p in encoder.parameters()) == TEXT_ENCODER_PARAMETERS == 5_680_910_336
    assert sum(p.numel() for p in vae.parameters()) == VAE_PARAMETERS == 126_892_531


def test_sizes_come_from_a_directory_or_a_known_name(tiny_wan: Path, tmp_path: Path) -> None:
    """The tiny model's own parameter count; other places are one sentence."""
    shape = read_shape(str(tiny_wan))
    loaded = wan.load_transformer(str(tiny_wan), torch.float32)
    assert shape.parameters == sum(p.numel() for p in loaded.parameters())
    assert {read_shape(name) for name in KNOWN} == {WAN21_1_3B, WAN21_14B}
    with pytest.raises(ValueError, match=r"is unknown: there is no .*config\.json"):
        read_shape(str(tmp_path))
    for content, sentence in (
        ("{", "cannot be used"),
        ('{"num_layers": 2}', "has no 'num_attention_heads'"),
        ('{"patch_size": [1, 4, 4]}', r"patch_size is \[1, 4, 4\]"),
        ('{"image_dim": 1280}', "has an image branch"),
    ):
        (tmp_path / "transformer").mkdir(exist_ok=True)
        (tmp_path / "transformer" / "config.json").write_text(content)
        with pytest.raises(ValueError, match=sentence):
            read_shape(str(tmp_path))


@pytest.mark.parametrize(
    ("part", "fault", "sentence"),
    [
        ("transformer", "config", r"transformer has no readable config or index"),
        ("vae", "class", r"vae holds a model of class UNet; allowed: AutoencoderKLWan"),
        ("text_encoder", "class", r"holds a model of class UNet; allowed: UMT5EncoderModel"),
        ("transformer", "shard", r"transformer lacks 1 of 2 weight files \(first: gone.safet"),
    ],
)
def test_a_directory_that_lacks_something_is_one_sentence(
    policy_config: PolicyConfig, tiny_wan: Path, tmp_path: Path, part: str, fault: str,
    sentence: str,
) -> None:  # fmt: skip
    copy = shutil.copytree(tiny_wan, tmp_path / "wan")
    folder = copy / part
    match fault:
        case "config":
            (folder / "config.json").unlink()
        case "class":
            config = json.loads((folder / "config.json").read_text())
            config |= {"_class_name": "UNet"} if part == "vae" else {"architectures": ["UNet"]}
            (folder / "config.json").write_text(json.dumps(config))
        case "shard":
            here = next(folder.glob("*.safetensors")).name
            index = {"weight_map": {"a": here, "b": "gone.safetensors"}}
            (folder / "x.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=sentence) as caught:
        Policy.load(policy_config.model_copy(update={"model": str(copy)}), "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("home", ["offload", "device", "cpu"])
def test_embeddings_do_not_depend_on_where_the_encoder_lives(
    policy_config: PolicyConfig, policy: Policy, home: str
) -> None:
    """And are computed once: the second call needs no encoder."""
    moved = Policy.load(policy_config.model_copy(update={"text_encoder": home}), "cpu")
    texts = ["a red box", "a blue ball", "a red box"]
    moved.prepare(texts)
    expected = policy.encode(texts)
    moved._text = None
    assert torch.equal(moved.encode(texts), expected)
    with pytest.raises(ValueError, match="cannot encode"):
        moved.prepare(["another"])


def test_an_attention_backend_that_is_not_installed_is_one_sentence(
    policy_config: PolicyConfig,
) -> None:
    with pytest.raises(ValueError, match=r"policy\.attention = 'flash' cannot be") as caught:
        Policy.load(policy_config.model_copy(update={"attention": "flash"}), "cpu")
    assert "\n" not in str(caught.value)
