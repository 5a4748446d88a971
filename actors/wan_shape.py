"""Numbers of Wan2.1 that can be known without its weights, and without torch.

The transformer's sizes (from its config.json), and what follows from them: parameters, adapters,
tokens, floating-point operations, bytes. Every formula is checked against the real classes on the
meta device (tests/actors/test_full_size.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LATENT_CHANNELS = 16
SPATIAL_STRIDE = 8
"""Pixels of a latent cell's side."""
TEMPORAL_STRIDE = 4
"""Video frames of a latent frame, but for the first, which has one of its own."""
PATCH = 2
"""Latent cells of a token's side."""
TEXT_ENCODER_PARAMETERS = 5_680_910_336
"""UMT5-XXL's encoder: 24 layers of width 4096 and a vocabulary of 256,384."""
VAE_PARAMETERS = 126_892_531
DECODER_CHANNELS = 96
"""Channels of the VAE's decoder at full resolution."""
VAE_TILE, VAE_TILE_STRIDE = 256, 192
"""Pixels of a tile's side where the VAE decodes in tiles, and between their starts."""
_FIRST_FRAME_FLOPS, _FRAME_FLOPS = 687_882_752, 2_161_889_792
"""Operations of the decoder's convolutions for one cell of the first and of a later latent frame,
counted on the meta device."""


@dataclass(frozen=True, slots=True)
class WanShape:
    """Sizes of a `WanTransformer3DModel` without an image branch."""

    heads: int
    head_dim: int
    ffn_dim: int
    layers: int
    text_dim: int = 4096
    freq_dim: int = 256
    channels: int = LATENT_CHANNELS

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> WanShape:
        """Sizes in a transformer's config.json; ValueError where it is another architecture."""
        if list(config.get("patch_size", (1, PATCH, PATCH))) != [1, PATCH, PATCH]:
            raise ValueError(
                f"patch_size is {config['patch_size']}; allowed: [1, {PATCH}, {PATCH}]"
            )
        if config.get("image_dim") or config.get("added_kv_proj_dim"):
            raise ValueError("the transformer has an image branch; allowed: text-to-video models")
        try:
            return cls(
                heads=int(config["num_attention_heads"]),
                head_dim=int(config["attention_head_dim"]),
                ffn_dim=int(config["ffn_dim"]),
                layers=int(config["num_layers"]),
                text_dim=int(config.get("text_dim", 4096)),
                freq_dim=int(config.get("freq_dim", 256)),
                channels=int(config.get("in_channels", LATENT_CHANNELS)),
            )
        except KeyError as missing:
            raise ValueError(f"the transformer's config has no {missing}") from None

    @property
    def width(self) -> int:
        """D, the size of a token's vector."""
        return self.heads * self.head_dim

    @property
    def block_parameters(self) -> int:
        """Eight D x D projections with biases, four RMS norms, a layer norm, the feed-forward
        network, the modulation table: 8 D² + 2 D F + 21 D + F."""
        d, f = self.width, self.ffn_dim
        return 8 * d * d + 2 * d * f + 21 * d + f

    @property
    def parameters(self) -> int:
        """All blocks, patch and text embedding, time embedding and projection, output head."""
        d, patch = self.width, self.channels * PATCH * PATCH
        time = (self.freq_dim * d + d) + (d * d + d) + (6 * d * d + 6 * d)
        text = (self.text_dim * d + d) + (d * d + d)
        head = d * patch + patch + 2 * d
        return self.layers * self.block_parameters + (patch * d + d) + time + text + head

    @property
    def float32_parameters(self) -> int:
        """Those that diffusers keeps in float32 in a bfloat16 model: time embedding, modulation
        tables, the affine layer norm of every block."""
        d = self.width
        return (self.freq_dim * d + d + d * d + d) + self.layers * (6 * d + 2 * d) + 2 * d

    def weight_bytes(self, dtype: str) -> int:
        """Bytes of the frozen weights in "bfloat16" or "float32"."""
        if dtype == "float32":
            return 4 * self.parameters
        return 2 * self.parameters + 2 * self.float32_parameters

    def lora_sites(self, targets: Sequence[str]) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of every linear module of a block that `targets` match, by name."""
        d, f = self.width, self.ffn_dim
        names = {f"{a}.{p}": (d, d) for a in ("attn1", "attn2") for p in _PROJECTIONS}
        names |= {"ffn.net.0.proj": (d, f), "ffn.net.2": (f, d)}
        return {
            name: size
            for name, size in names.items()
            if any(name == target or name.endswith(f".{target}") for target in targets)
        }

    def lora_modules(self, targets: Sequence[str]) -> int:
        """Linear modules in the blocks that `targets` match."""
        return self.layers * len(self.lora_sites(targets))

    def lora_parameters(self, rank: int, targets: Sequence[str]) -> int:
        """Trained values: rank x (inputs + outputs) of every matched module."""
        return self.layers * rank * sum(i + o for i, o in self.lora_sites(targets).values())

    def tokens(self, latent_frames: int, height: int, width: int) -> int:
        """N, the tokens of a clip of `height` x `width` pixels."""
        side = SPATIAL_STRIDE * PATCH
        return latent_frames * (height // side) * (width // side)

    def forward_flops(self, tokens: int, text_tokens: int) -> tuple[int, int]:
        """Operations (a multiply-add is two) of one forward pass of one clip, without the adapter
        and the guidance's second pass: (linear layers, attention products).

        Per block: 12 D² N of the projections of clip tokens, 4 D² M of the M text tokens' keys and
        values, 4 D F N of the feed-forward network; 4 N² D of self- and 4 N M D of
        cross-attention.
        """
        d, f, n, m = self.width, self.ffn_dim, tokens, text_tokens
        patch = self.channels * PATCH * PATCH
        block = 12 * d * d * n + 4 * d * d * m + 4 * d * f * n
        once = 4 * patch * d * n + 2 * (self.text_dim * d + d * d) * m
        once += 2 * (self.freq_dim * d + d * d + 6 * d * d)
        return self.layers * block + once, self.layers * (4 * n * n * d + 4 * n * m * d)


_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")

WAN21_1_3B = WanShape(heads=12, head_dim=128, ffn_dim=8960, layers=30)
WAN21_14B = WanShape(heads=40, head_dim=128, ffn_dim=13824, layers=40)
KNOWN = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": WAN21_1_3B,
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": WAN21_14B,
}
"""Sizes by hub id."""


def latent_shape(frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """[16, F', h, w] of a clip of F = 4 (F' - 1) + 1 frames of `height` x `width` pixels."""
    latent_frames = (frames - 1) // TEMPORAL_STRIDE + 1
    return LATENT_CHANNELS, latent_frames, height // SPATIAL_STRIDE, width // SPATIAL_STRIDE


def read_shape(model: str) -> WanShape:
    """Sizes of the transformer of a model directory or of a known hub id.

    ValueError, in one sentence, where they cannot be known.
    """
    if model in KNOWN:
        return KNOWN[model]
    file = Path(model) / "transformer" / "config.json"
    try:
        return WanShape.from_config(json.loads(file.read_text(encoding="utf-8")))
    except OSError:
        raise ValueError(
            f"the size of policy.model {model!r} is unknown: there is no {file}; allowed: a model "
            f"directory, or one of {', '.join(KNOWN)}"
        ) from None
    except ValueError as error:
        raise ValueError(f"{file} cannot be used: {error}") from None


def learner_flops(shape: WanShape, tokens: int, text_tokens: int) -> int:
    """Operations that one window step of one clip needs in the learner, per guidance branch.

    The reference's forward pass, the policy's, and its backward pass: with frozen weights a linear
    layer costs its forward pass once more (the gradient of its input), an attention product twice.
    Recomputation under activation checkpointing is not counted, since it is no use of the model.
    """
    linear, attention = shape.forward_flops(tokens, text_tokens)
    return 3 * linear + 4 * attention


def rollout_passes(group_size: int, steps: int, start: float, shared_prefix: bool) -> float:
    """Forward passes, in clips, of a group whose window starts at `start`: a shared prefix and the
    velocity of the window's first step are computed once, everything else once for each member."""
    if not shared_prefix:
        return group_size * steps
    return start + 1 + group_size * (steps - start - 1)


def learner_passes(group_size: int, window: int, updates: int, shared_prefix: bool) -> float:
    """Window steps, in clips, that the learner computes for a trajectory: members that share their
    prefix have the first one in common, as far as they are in the same of a batch's `updates`."""
    return window - 1 + min(1.0, updates / group_size) if shared_prefix else window


def decoder_flops(frames: int, height: int, width: int, tiled: bool = False) -> int:
    """Operations of the VAE's decoder for one clip, whole or in tiles: convolutions in proportion
    to latent cells, the first latent frame (which is one video frame) less than the others (four),
    and the attention of its middle block in each latent frame, 4 n² of `4 x DECODER_CHANNELS`."""
    if tiled and max(height, width) > VAE_TILE:
        rows_of = [min(VAE_TILE, height - y) for y in range(0, height, VAE_TILE_STRIDE)]
        columns_of = [min(VAE_TILE, width - x) for x in range(0, width, VAE_TILE_STRIDE)]
        return sum(decoder_flops(frames, y, x) for y in rows_of for x in columns_of)
    _, latent_frames, rows, columns = latent_shape(frames, height, width)
    n = rows * columns
    convolutions = _FIRST_FRAME_FLOPS + (latent_frames - 1) * _FRAME_FLOPS
    return n * convolutions + latent_frames * 4 * n * n * 4 * DECODER_CHANNELS


def decoder_bytes(frames: int, height: int, width: int) -> int:
    """Peak bytes of live float32 tensors while the VAE decodes one clip, its weights aside.

    In units of v, four frames of `DECODER_CHANNELS` at full resolution: the decoder goes latent
    frame by latent frame and keeps the last two frames of the input of each causal convolution
    (8 at full resolution, 6 with twice the channels at half, 6 with four times at a quarter, 11 at
    an eighth: 6.7 v); at the last block's convolution there are its input with two kept frames,
    plain and padded (3 v), and three more tensors of its size. The finished frames come on top.
    """
    v = 4 * DECODER_CHANNELS * height * width * 4
    video = 3 * max(frames - TEMPORAL_STRIDE, 0) * height * width * 4
    return math.ceil(12.7 * v) + video
