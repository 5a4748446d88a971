"""Film the known-answer clips of the rewards: `python -m benchmarks.make_canary`.

Two consistent clips of the toy world, each as one PNG strip (frames side by side) in
`rewards/canary/`, with their prompts in `clips.json`. Same seed, same files.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

import rewards
from prompts.motions import Motion
from toyworld.scenes import random_scene, render_clip

SEED = 2604
MOTIONS = {"orbit": Motion.ORBIT_LEFT, "push": Motion.PUSH_IN}


def main() -> None:
    """Write the strips and their prompts."""
    folder = Path(rewards.__file__).parent / "canary"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(SEED)
    prompts = {}
    for name, motion in MOTIONS.items():
        clip = render_clip(random_scene(rng), (motion,))
        strip = np.concatenate(list(clip.video), axis=1)
        cv2.imwrite(str(folder / f"{name}.png"), cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))
        prompts[name] = {"prompt": clip.prompt.text, "frames": len(clip.video)}
        print(f"{name}: {clip.prompt.text}")
    (folder / "clips.json").write_text(json.dumps(prompts, indent=1) + "\n")


if __name__ == "__main__":
    main()
