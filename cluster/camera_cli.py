"""`worldr1 camera "PROMPT"`: what a prompt's camera command means, in words and as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.config import ConfigError, RunConfig, load

if TYPE_CHECKING:
    from prompts.schema import CameraPath, Prompt


def add_camera_command(commands: Any) -> None:
    """Register the command with the subparsers of `worldr1`."""
    parser = commands.add_parser(
        "camera", help="show the camera path, flow and noise that a prompt asks for"
    )
    parser.add_argument("prompt", metavar="PROMPT", help='e.g. "Camera push in, then pan left."')
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. rollout.frames=49")
    parser.add_argument("--preset", default="toy", metavar="NAME", help="default: toy")
    parser.add_argument("--path", type=Path, metavar="JSON", help="c2w matrices instead of words")
    parser.add_argument("--out", type=Path, default=Path("camera.png"), metavar="PNG")
    parser.add_argument("--seed", type=int, default=0, help="of the noise that is drawn")
    parser.set_defaults(command=show_camera)


def show_camera(options: argparse.Namespace) -> int:
    """Print what was understood and write the picture; ConfigError for what cannot be followed."""
    config = load(options.preset, options.overrides)
    if options.seed < 0:
        raise ConfigError(f"--seed is {options.seed}; allowed: 0 or more")
    from prompts.camera import requested_path

    prompt = with_camera(config, text_prompt("camera", options.prompt), options.path)
    path = requested_path(prompt, config.rollout.frames, config.camera.amplitudes)
    for line in _description(config, prompt, path):
        print(line)
    if path is None:
        return 0
    from cluster.camera_sheet import write_camera_sheet

    try:
        write_camera_sheet(options.out, path, config, options.seed)
    except OSError as error:
        raise ConfigError(f"--out {options.out} cannot be written: {error}") from None
    print(f"picture: {options.out}")
    return 0


def with_camera(config: RunConfig, prompt: Prompt, file: Path | None) -> Prompt:
    """`prompt` with the path of `file`, where one is given, instead of its own; ConfigError where
    its path cannot be followed."""
    from prompts.camera import read_path, require_paths

    try:
        if file is not None:
            poses = {"c2w": read_path(file)}
            prompt = type(prompt).model_validate({**prompt.model_dump(by_alias=True), **poses})
        require_paths([prompt], config.rollout.frames, config.camera)
    except ValueError as error:
        sentence = str(error).removeprefix(f"prompt {prompt.id!r}: ")
        raise ConfigError(f"the camera command cannot be followed: {sentence}") from None
    return prompt


def camera_words(prompt: Prompt) -> str:
    """What camera a prompt is understood to ask for, in words."""
    from prompts.motions import detect_segments

    if prompt.c2w is not None:
        return f"camera as given, {len(prompt.c2w)} poses"
    segments = detect_segments(prompt.text)
    if not segments:
        return "no camera motion is named: plain noise"
    return "camera " + ", then ".join(map(str, segments))


def text_prompt(id: str, text: str) -> Prompt:
    """A prompt that a person typed; ConfigError where it is none."""
    from pydantic import ValidationError

    from prompts.schema import Prompt

    try:
        return Prompt.from_text(id, text)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"the prompt {text[:60]!r} cannot be used: {reason}") from None
    except ValueError as error:
        raise ConfigError(f"the camera command cannot be followed: {error}") from None


def _description(config: RunConfig, prompt: Prompt, path: CameraPath | None) -> list[str]:
    import numpy as np

    from prompts.camera import rotation_angle_deg
    from prompts.motions import detect_segments

    frames = config.rollout.frames
    if path is None:
        return [
            "no motion word was found: no camera path, plain Gaussian noise, no S_traj",
            f"words that are understood: {_vocabulary()}",
        ]
    lines = []
    if prompt.c2w is None:
        segments = detect_segments(prompt.text)
        share = (frames - 1) / len(segments)
        for number, segment in enumerate(segments):
            first, last = number * share, (number + 1) * share
            lines.append(f"{number + 1}. {segment}: frames {first:.4g} to {last:.4g}")
    else:
        lines.append(f"a given path of {len(path)} cameras")
    end, centres = path.c2w[-1], path.c2w[:, :3, 3]
    turned = float(rotation_angle_deg(end[:3, :3]))
    travelled = float(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum())
    x, y, z = (float(v) for v in end[:3, 3])
    lines.append(
        f"last camera: {x:+.3f} right, {y:+.3f} down, {z:+.3f} forward (scene depths), turned "
        f"{turned:.1f} degrees; {travelled:.3f} depths travelled"
    )
    camera = config.camera
    lines.append(
        f"noise: strength {camera.strength:g}, degradation {camera.degradation:g}, grid "
        f"{camera.transport_grid}, latents {list(config.rollout.latent_shape)}"
    )
    return lines


def _vocabulary() -> str:
    from prompts.motions import VOCABULARY

    return ", ".join(VOCABULARY)
