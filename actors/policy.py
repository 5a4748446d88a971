"""The one definition of the policy: rollout and learner compute the same velocity.

The policy is a frozen video model with a trained LoRA adapter and classifier-free guidance. What is
particular to the model family is in `actors/wan.py` alone. Source: method section 2.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from actors import lora, wan
from actors.config import PolicyConfig
from actors.trajectory import LoraWeights, weights_checksum
from prompts.schema import Prompt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Torch's names of `policy.dtype`."""


def velocity(
    transformer: nn.Module,
    latents: Tensor,
    sigma: float | Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance_scale: float,
    batched: bool = True,
) -> Tensor:
    """The policy's velocity, float32 [B, C, F', h, w], of float32 `latents` of the same shape.

    `sigma` is a number, a scalar tensor or one value per clip [B]; `cond` and `uncond` are text
    embeddings [B or 1, L, D]. With guidance g > 1 both branches share one forward pass of 2 B, or
    take one each where not `batched`, and v = v_uncond + g·(v_cond - v_uncond) in float32; at g = 1
    `uncond` is not used.
    `transformer` may be wrapped (FSDP2): only its forward pass and dtype are used.
    """
    if latents.dtype != torch.float32:
        raise ValueError(f"latents have dtype {latents.dtype}; only torch.float32 is allowed")
    batch = len(latents)
    sigmas = torch.as_tensor(sigma, dtype=torch.float32, device=latents.device).expand(batch)
    text = cond.expand(batch, -1, -1)
    if guidance_scale == 1.0:
        return wan.raw_velocity(transformer, latents, sigmas, text)
    if uncond is None:
        raise ValueError(f"uncond is None; guidance_scale = {guidance_scale} needs an embedding")
    if not batched:
        without = wan.raw_velocity(transformer, latents, sigmas, uncond.expand(batch, -1, -1))
        with_text = wan.raw_velocity(transformer, latents, sigmas, text)
        return without + guidance_scale * (with_text - without)
    both = wan.raw_velocity(
        transformer,
        latents.repeat(2, 1, 1, 1, 1),
        sigmas.repeat(2),
        torch.cat([text, uncond.expand(batch, -1, -1)]),
    )
    with_text, without = both.chunk(2)
    return without + guidance_scale * (with_text - without)


def _use_attention(transformer: wan.Transformer, backend: str) -> None:
    """Switch diffusers' attention backend; ValueError where its package is not installed."""
    try:
        transformer.set_attention_backend(backend)
    except (ImportError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"policy.attention = {backend!r} cannot be used here: {reason}; allowed everywhere: "
            "'native'"
        ) from error


class Policy:
    """A loaded policy; `Policy.load` makes one."""

    def __init__(
        self,
        config: PolicyConfig,
        device: torch.device,
        transformer: wan.Transformer,
        lora_modules_matched: int,
        vae: wan.Decoder | None,
        text: tuple[wan.Tokenizer, wan.TextEncoder] | None,
    ) -> None:
        self.config = config
        self.device = device
        self.transformer = transformer
        self.lora_modules_matched = lora_modules_matched
        self._vae = vae
        self._text = text
        self._embeddings: OrderedDict[str, Tensor] = OrderedDict()

    @classmethod
    def load(
        cls,
        config: PolicyConfig,
        device: str | torch.device,
        with_decoder: bool = True,
        with_text_encoder: bool = True,
    ) -> Policy:
        """Load the components of `config.model` in evaluation mode and add the adapter.

        ValueError if a directory lacks a component or the adapter matches nothing.
        """
        device, dtype = torch.device(device), DTYPES[config.dtype]
        # Partial sums of bfloat16 products stay in float32: kernels that cut a sum into other
        # parts, for a batch of one and one of eight, then agree better.
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        wan.require_parts(config.model, with_decoder, with_text_encoder)
        transformer = wan.load_transformer(config.model, dtype).eval()
        matched = lora.add_lora(transformer, config.lora)
        nn.Module.to(transformer, device)
        if config.attention != "native":
            _use_attention(transformer, config.attention)
        if config.compile:
            transformer.compile_repeated_blocks()
        vae = text = None
        if with_decoder:
            vae = wan.load_vae(config.model).eval().requires_grad_(False)
            nn.Module.to(vae, device)
            wan.use_decoder(vae, config.vae_tiling, config.vae_channels_last)
        if with_text_encoder:
            tokenizer, encoder = wan.load_text_encoder(config.model, dtype)
            home = device if config.text_encoder == "device" else torch.device("cpu")
            text = tokenizer, encoder.eval().requires_grad_(False).to(home)
        return cls(config, device, transformer, matched, vae, text)

    @property
    def trainable_parameters(self) -> int:
        """Number of trained values: those of the adapter."""
        return sum(p.numel() for p in lora.lora_parameters(self.transformer).values())

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings [B, max_prompt_tokens, D], equal to WanPipeline's; cached by text.

        Every text is encoded alone, so that its embedding does not depend on its neighbours.
        """
        length = self.config.max_prompt_tokens
        rows = []
        self.prepare(texts)
        for text in texts:
            self._embeddings.move_to_end(text)
            tokens = self._embeddings[text]
            rows.append(nn.functional.pad(tokens, (0, 0, 0, length - len(tokens))))
        while len(self._embeddings) > self.config.cached_prompts:
            self._embeddings.popitem(last=False)
        return torch.stack(rows)

    @torch.no_grad()
    def prepare(self, texts: Sequence[str]) -> None:
        """Cache the embeddings of `texts` and of the unconditional branch; an offloaded encoder
        visits the device for them once."""
        guided = self.config.guidance_scale != 1.0
        wanted = [*texts, self.config.negative_prompt] if guided else texts
        missing = [text for text in dict.fromkeys(wanted) if text not in self._embeddings]
        if not missing:
            return
        if self._text is None:
            raise ValueError("this policy was loaded with_text_encoder=False and cannot encode")
        tokenizer, encoder = self._text
        length, visits = self.config.max_prompt_tokens, self.config.text_encoder == "offload"
        if visits:
            nn.Module.to(encoder, self.device)
        for text in missing:
            tokens = wan.embed_prompt(tokenizer, encoder, text, length)
            self._embeddings[text] = tokens.to(self.device)
        if visits:
            nn.Module.to(encoder, torch.device("cpu"))

    def encode_negative(self) -> Tensor | None:
        """Embedding [1, L, D] of the unconditional branch; None where guidance is off."""
        if self.config.guidance_scale == 1.0:
            return None
        return self.encode([self.config.negative_prompt])

    def velocity(
        self, latents: Tensor, sigma: float | Tensor, cond: Tensor, uncond: Tensor | None
    ) -> Tensor:
        """`velocity` of this policy's own network at the configured guidance."""
        scale, batched = self.config.guidance_scale, self.config.batched_guidance
        return velocity(self.transformer, latents, sigma, cond, uncond, scale, batched)

    def bind(self, prompts: Sequence[Prompt]) -> Callable[[Tensor, Tensor], Tensor]:
        """This policy with the texts of `prompts` bound: (latents, sigma) to their velocity."""
        cond = self.encode([prompt.text for prompt in prompts])
        uncond = self.encode_negative()

        def bound(latents: Tensor, sigma: Tensor) -> Tensor:
            return self.velocity(latents, sigma, cond, uncond)

        return bound

    @torch.no_grad()
    def decode(self, latents: Tensor, batch: int = 1) -> Tensor:
        """Videos uint8 [B, F, H, W, 3] on the CPU of latents [B, C, F', h, w], `batch` clips at a
        time.

        ValueError if a clip's latents are not finite.
        """
        if self._vae is None:
            raise ValueError("this policy was loaded with_decoder=False and cannot decode")
        finite = torch.isfinite(latents).flatten(1).all(dim=1)
        if not bool(finite.all()):
            raise ValueError(
                f"latents of clip {int(finite.int().argmin())} hold NaN or infinity; "
                "only finite decode"
            )
        videos = []
        for clips in latents.split(batch):
            frames = (wan.decode_clips(self._vae, clips) * 255).round().to(torch.uint8)
            # Rounded and laid out where it was decoded: a quarter of the bytes to copy.
            videos.append(frames.permute(0, 2, 3, 4, 1).contiguous().cpu())
        return torch.cat(videos)

    def lora_weights(self) -> dict[str, np.ndarray]:
        """Copies of the adapter's weights, float32, by name."""
        return lora.export_lora(self.transformer)

    def load_lora(self, weights: LoraWeights) -> None:
        """Copy `weights` into the adapter; ValueError unless names and shapes are exactly its."""
        lora.load_lora(self.transformer, weights)

    def checksum(self) -> str:
        """`weights_checksum` of the weights that the model really holds."""
        return weights_checksum(self.lora_weights())

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Context in which the policy is its own reference: the model without the adapter."""
        return lora.adapter_disabled(self.transformer)
