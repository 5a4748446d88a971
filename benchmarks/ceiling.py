"""The best that the toy policy could do: ground-truth clips of given prompts, through its VAE.

`python -m benchmarks.ceiling --out DIR [--prompts toy_test] [--pairs 22]` writes a folder of videos
with its index, as `worldr1 generate` does; `worldr1 evaluate DIR` measures them. Each clip is a
consistent scene that fulfils its prompt, filmed along the requested path, encoded and decoded by
the VAE, so that what it loses is what no policy could win.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from actors.wan import decode_clips, load_vae
from cluster.clips import Clip, write_index
from cluster.storage import RunFolder
from cluster.video import encode_mp4
from prompts.config import Amplitudes
from prompts.dataset import load_prompts
from prompts.schema import Prompt
from toyworld.scenes import Scene, random_scene, render_clip
from toyworld.vae_training import Videos, to_float

THING = re.compile(r"\ba (\w+) (box|ball)\b", re.IGNORECASE)
FLOOR = re.compile(r"\bon a (\w+) floor\b")
MODEL = Path(__file__).resolve().parent.parent / "toyworld/model"


def scene_of(text: str, seed: int) -> Scene:
    """A scene that shows what a toy prompt says; places, sizes and textures are drawn by `seed`.

    ValueError for a prompt that names no two objects on a floor.
    """
    things, floor = THING.findall(text), FLOOR.search(text)
    if len(things) != 2 or floor is None:
        raise ValueError(f"{text!r} names no two objects on a floor")
    drawn = random_scene(np.random.default_rng((seed, 77)))
    objects = tuple(
        replace(thing, color=color, shape=shape)
        for thing, (color, shape) in zip(drawn.objects, things, strict=True)
    )
    return replace(drawn, objects=(objects[0], objects[1]), floor_color=floor[1])


@torch.no_grad()
def through_vae(videos: Videos) -> Videos:
    """Videos uint8 [N, F, H, W, 3] as the toy VAE gives them back."""
    vae = load_vae(str(MODEL)).eval()
    mean = torch.tensor(vae.config["latents_mean"]).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config["latents_std"]).view(1, -1, 1, 1, 1)
    decoded = []
    for video in videos:
        latents = (vae.encode(to_float(video[None])).latent_dist.mode() - mean) / std
        decoded.append((decode_clips(vae, latents) * 255).round().to(torch.uint8))
    return torch.cat(decoded).permute(0, 2, 3, 4, 1).numpy()


def main() -> int:
    """Render, encode, decode, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True)
    parser.add_argument("--prompts", default="toy_test")
    parser.add_argument("--pairs", type=int, default=22)
    options = parser.parse_args()
    prompts = load_prompts(options.prompts)
    pairs: list[tuple[Prompt, int]] = [(prompts[i % len(prompts)], i) for i in range(options.pairs)]
    videos = np.stack([render_clip(scene_of(p.text, seed), p.motions).video for p, seed in pairs])
    folder, clips = RunFolder(options.out), []
    for (prompt, seed), video in zip(pairs, through_vae(videos), strict=True):
        clip = Clip.of(prompt, seed, Amplitudes())
        folder.write_bytes(clip.file, encode_mp4(video))
        clips.append(clip)
    write_index(folder, clips)
    print(f"{folder.url}: {len(clips)} clips")
    return 0


if __name__ == "__main__":
    sys.exit(main())
