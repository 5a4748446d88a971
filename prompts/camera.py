"""Camera paths from motions, and the algebra of poses.

Poses are float64 [..., 4, 4] in OpenCV axes (x right, y down, z forward); lengths in scene depths.
Source: World-R1's camera conditioning (method, section 1), recursive composition
E_{t+1} = E_t · T_motion.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prompts.config import Amplitudes, CameraConfig
from prompts.motions import Motion, Segment, detect_segments
from prompts.schema import CameraPath, Prompt, require_rigid

Array = NDArray[np.float64]

DEFAULT_AMPLITUDES = Amplitudes()


def requested_path(
    prompt: Prompt, frames: int, amplitudes: Amplitudes = DEFAULT_AMPLITUDES
) -> CameraPath | None:
    """The camera path that a prompt asks for, the one definition of rollout and reward.

    Its hand-given `c2w` if it has one, else the path of the motions that its text names, else
    None. ValueError where a hand-given path has not `frames` cameras.
    """
    if prompt.c2w is None:
        return camera_path(detect_segments(prompt.text), frames, amplitudes)
    return given_path(prompt.c2w, frames)


def require_paths(prompts: Iterable[Prompt], frames: int, camera: CameraConfig) -> None:
    """ValueError, naming the prompt, if a camera path of `prompts` cannot be followed: of another
    length than `frames`, or passing through the assumed plane between two frames."""
    seen: set[tuple[Segment, ...]] = set()
    for prompt in prompts:
        segments = detect_segments(prompt.text)
        if prompt.c2w is None:
            if segments in seen:
                continue
            seen.add(segments)
        try:
            path = requested_path(prompt, frames, camera.amplitudes)
            if path is not None:
                _require_in_front(path, camera.depth)
        except ValueError as error:
            raise ValueError(f"prompt {prompt.id!r}: {error}") from None


def _require_in_front(path: CameraPath, depth: float) -> None:
    """ValueError where a step of the path passes through the plane at `depth` before it."""
    motion = invert_pose(path.c2w[1:]) @ path.c2w[:-1]
    plane = motion[:, :3, :3].copy()
    plane[:, :, 2] += motion[:, :3, 3] / depth
    if (np.linalg.det(plane) <= 0).any():
        raise ValueError(
            f"between two frames the camera passes through the plane at depth {depth:g}; "
            "allowed: smaller steps per frame"
        )


def given_path(c2w: object, frames: int) -> CameraPath:
    """A hand-given path of `frames` cameras, c2w [F, 4, 4] in scene depths, any sequence type.

    Rotations are replaced by the nearest exact ones, and the path is expressed in its first
    camera's frame. ValueError unless it is finite, rigid (to 1e-4) and of that length.
    """
    poses = require_rigid(c2w)
    if len(poses) != frames:
        raise ValueError(
            f"the camera path has {len(poses)} cameras; allowed: {frames}, one per video frame"
        )
    left, _, right = np.linalg.svd(poses[:, :3, :3])
    poses[:, :3, :3] = left @ right
    return CameraPath(relative_to_first(poses))


def read_path(file: str | Path) -> list[list[list[float]]]:
    """The c2w matrices of a JSON file: a list of 4 x 4 lists, or {"c2w": that list}.

    ValueError, naming the file, where it cannot be read or holds no rigid path.
    """
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8"))
        poses = data["c2w"] if isinstance(data, dict) else data
        return require_rigid(poses).tolist()
    except KeyError:
        raise ValueError(f'camera path {file} has no "c2w"; allowed: {{"c2w": [...]}}') from None
    except (OSError, ValueError) as error:
        raise ValueError(f"camera path {file} cannot be used: {error}") from None
    except RecursionError:
        raise ValueError(f"camera path {file} cannot be used: it is nested too deeply") from None


def camera_path(
    motions: Sequence[Motion | Segment], frames: int, amplitudes: Amplitudes = DEFAULT_AMPLITUDES
) -> CameraPath | None:
    """The path of `frames` cameras through `motions` in turn; None if there are no motions.

    The clip's time is divided equally over the motions, each composed on the end of the one
    before, so that the path is continuous in position and orientation. Amplitudes are those of a
    whole single-motion clip: a motion that gets a third of the time goes a third of the way, at
    the same speed. A segment with an amount of its own goes that far in its time. `c2w` is
    [frames, 4, 4], `c2w[0]` the identity.
    """
    if frames < 1:
        raise ValueError(f"frames is {frames}; allowed: 1 or more")
    if not motions:
        return None
    times = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
    share = 1.0 / len(motions)
    extents = [_extents(motion, share, amplitudes) for motion in motions]
    c2w = []
    for time in times:
        pose = np.eye(4)
        for index, (motion, extent) in enumerate(extents):
            fraction = min(max(time - index * share, 0.0), share)
            pose = pose @ motion_pose(motion, fraction, extent)
        c2w.append(pose)
    return CameraPath(np.stack(c2w))


def motion_pose(
    motion: Motion, fraction: float, amplitudes: Amplitudes = DEFAULT_AMPLITUDES
) -> Array:
    """Pose [4, 4] (c2w, in the motion's first camera) after `fraction` of its amplitude."""
    a = amplitudes
    match motion:
        case Motion.FIXED:
            return np.eye(4)
        case Motion.PUSH_IN:
            return _translated(z=a.push * fraction)
        case Motion.PULL_OUT:
            return _translated(z=-a.push * fraction)
        case Motion.MOVE_LEFT:
            return _translated(x=-a.move * fraction)
        case Motion.MOVE_RIGHT:
            return _translated(x=a.move * fraction)
        case Motion.CRANE_UP:
            return _translated(y=-a.crane * fraction)
        case Motion.CRANE_DOWN:
            return _translated(y=a.crane * fraction)
        case Motion.TILT_UP:
            return _turned("x", a.tilt_deg * fraction)
        case Motion.TILT_DOWN:
            return _turned("x", -a.tilt_deg * fraction)
        case Motion.ROLL_LEFT:
            return _turned("z", -a.roll_deg * fraction)
        case Motion.ROLL_RIGHT:
            return _turned("z", a.roll_deg * fraction)
        case Motion.PAN_LEFT:
            return _turned("y", -a.pan_deg * fraction)
        case Motion.PAN_RIGHT:
            return _turned("y", a.pan_deg * fraction)
        case Motion.ORBIT_LEFT | Motion.ORBIT_RIGHT:
            # Walking to the left around a centre in front means looking ever more to the right.
            sign = 1.0 if motion is Motion.ORBIT_LEFT else -1.0
            centre = _translated(z=a.orbit_radius)
            return centre @ _turned("y", sign * a.orbit_deg * fraction) @ invert_pose(centre)


def invert_pose(pose: Array) -> Array:
    """Inverse of rigid poses [..., 4, 4]: c2w becomes w2c and back, without a matrix solve."""
    rotation = np.swapaxes(pose[..., :3, :3], -1, -2)
    inverse = np.zeros_like(pose)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -(rotation @ pose[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1.0
    return inverse


def relative_to_first(c2w: Array) -> Array:
    """The path c2w [F, 4, 4] expressed in its own first camera: result[0] is the identity."""
    return invert_pose(c2w[0]) @ c2w


def rotation_angle_deg(R: Array) -> Array:
    """Geodesic angles [...] of rotations [..., 3, 3], in degrees within [0, 180].

    The arctangent of sine and cosine stays exact near 0, where the arccosine of the trace alone
    has lost half of its digits.
    """
    skew = np.stack(
        [
            R[..., 2, 1] - R[..., 1, 2],
            R[..., 0, 2] - R[..., 2, 0],
            R[..., 1, 0] - R[..., 0, 1],
        ],
        axis=-1,
    )
    sine = np.linalg.norm(skew, axis=-1) / 2
    cosine = (np.trace(R, axis1=-2, axis2=-1) - 1) / 2
    return np.degrees(np.arctan2(sine, cosine))


_AMPLITUDE_OF = {
    "push": "push", "pull": "push", "move": "move", "crane": "crane",
    "pan": "pan_deg", "tilt": "tilt_deg", "roll": "roll_deg", "orbit": "orbit_deg",
}  # fmt: skip
"""Field of `Amplitudes` by a motion's first word."""


def _extents(
    motion: Motion | Segment, share: float, amplitudes: Amplitudes
) -> tuple[Motion, Amplitudes]:
    """The motion with the amplitudes that take it to its own amount after `share` of the clip."""
    segment = motion if isinstance(motion, Segment) else Segment(motion)
    if segment.amount is None:
        return segment.motion, amplitudes
    field = _AMPLITUDE_OF[segment.motion.split()[0]]
    return segment.motion, amplitudes.model_copy(update={field: segment.amount / share})


def _translated(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Array:
    pose = np.eye(4)
    pose[:3, 3] = x, y, z
    return pose


def _turned(axis: Literal["x", "y", "z"], angle_deg: float) -> Array:
    """A camera turned about one of its axes (x right, y down, z forward) by the right-hand rule:
    about x it looks up, about y to the right, about z it rolls clockwise."""
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    pose = np.eye(4)
    pose[i, i], pose[i, j], pose[j, i], pose[j, j] = cos, -sin, sin, cos
    return pose
