"""Film the known-answer clips of the rewards: `python -m benchmarks.make_canary`.

Consistent clips of the toy world under five motions, and what only a renderer can spoil in two of
them, each as one PNG strip (frames side by side) in `rewards/canary/`, described in `clips.json`.
Everything else that spoils a clip is made from these when they are read (`rewards/spoilt.py`).
Same seed, same files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

import rewards
from prompts.motions import Motion
from toyworld.scenes import Scene, random_scene, render_clip

U8 = NDArray[np.uint8]

SEED = 2604
MOTIONS = {
    "orbit": Motion.ORBIT_LEFT,
    "push": Motion.PUSH_IN,
    "pull": Motion.PULL_OUT,
    "move": Motion.MOVE_RIGHT,
    "pan": Motion.PAN_LEFT,
}
SPOILT = ("orbit", "push")
"""Motions whose spoilt versions are filmed too."""


def moving_object(scene: Scene, motion: Motion) -> U8:
    """One object slides over the floor, though the prompt says nothing of it."""
    first, second = scene.objects
    moving = replace(scene, objects=(replace(first, slides="right"), second))
    return render_clip(moving, (motion,)).video


def morph(scene: Scene, motion: Motion) -> U8:
    """Objects turn into others: boxes into balls, balls into boxes, of another size."""
    other = {"box": "ball", "ball": "box"}
    changed = tuple(
        replace(o, shape=other[o.shape], radius=o.radius * 1.25, yaw=o.yaw + 0.6)
        for o in scene.objects
    )
    before = render_clip(scene, (motion,)).video
    after = render_clip(replace(scene, objects=(changed[0], changed[1])), (motion,)).video
    share = np.linspace(0, 1, len(before))[:, None, None, None]
    mixed: U8 = ((1 - share) * before + share * after + 0.5).astype(np.uint8)
    return mixed


def changing_objects(scene: Scene, motion: Motion) -> U8:
    """Every frame has other objects in the same room."""
    rng = np.random.default_rng(SEED + 1)
    scenes = [replace(scene, objects=random_scene(rng).objects) for _ in range(9)]
    return np.stack([render_clip(s, (motion,)).video[i] for i, s in enumerate(scenes)])


def independent_frames(scene: Scene, motion: Motion) -> U8:
    """Every frame shows another place."""
    rng = np.random.default_rng(SEED + 2)
    return np.stack([render_clip(random_scene(rng), (motion,)).video[i] for i in range(9)])


FILMED: tuple[Callable[[Scene, Motion], U8], ...] = (
    moving_object,
    morph,
    changing_objects,
    independent_frames,
)


def main() -> None:
    """Write the strips and their descriptions."""
    folder = Path(rewards.__file__).parent / "canary"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(SEED)
    described = {}
    for name, motion in MOTIONS.items():
        scene = random_scene(rng)
        clip = render_clip(scene, (motion,))
        videos = {"consistent": clip.video}
        if name in SPOILT:
            videos |= {film.__name__: film(scene, motion) for film in FILMED}
        for version, video in videos.items():
            strip = np.concatenate(list(video), axis=1)
            file = f"{name}_{version}.png"
            cv2.imwrite(str(folder / file), cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))
        described[name] = {
            "prompt": clip.prompt.text,
            "frames": len(clip.video),
            "versions": list(videos),
        }
        print(f"{name}: {clip.prompt.text} ({', '.join(videos)})")
    (folder / "clips.json").write_text(json.dumps(described, indent=1) + "\n")


if __name__ == "__main__":
    main()
