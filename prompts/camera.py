"""Camera paths from motions, and the algebra of poses.

Poses are float64 [..., 4, 4] in OpenCV axes (x right, y down, z forward); lengths in scene depths.
Source: World-R1's camera conditioning (method, section 1), recursive composition
E_{t+1} = E_t · T_motion.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prompts.config import Amplitudes
from prompts.motions import Motion
from prompts.schema import CameraPath

Array = NDArray[np.float64]

DEFAULT_AMPLITUDES = Amplitudes()


def camera_path(
    motions: Sequence[Motion], frames: int, amplitudes: Amplitudes = DEFAULT_AMPLITUDES
) -> CameraPath | None:
    """The path of `frames` cameras through `motions` in turn; None if there are no motions.

    The clip's time is divided equally over the motions, each composed on the end of the one
    before, so that the path is continuous in position and orientation. Amplitudes are those of a
    whole single-motion clip: a motion that gets a third of the time goes a third of the way, at
    the same speed. `c2w` is [frames, 4, 4], `c2w[0]` the identity.
    """
    if frames < 1:
        raise ValueError(f"frames is {frames}; allowed: 1 or more")
    if not motions:
        return None
    times = np.linspace(0.0, 1.0, frames) if frames > 1 else np.zeros(1)
    share = 1.0 / len(motions)
    c2w = []
    for time in times:
        pose = np.eye(4)
        for index, motion in enumerate(motions):
            fraction = min(max(time - index * share, 0.0), share)
            pose = pose @ motion_pose(motion, fraction, amplitudes)
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
        case Motion.PAN_LEFT:
            return _turned_right(-a.pan_deg * fraction)
        case Motion.PAN_RIGHT:
            return _turned_right(a.pan_deg * fraction)
        case Motion.ORBIT_LEFT | Motion.ORBIT_RIGHT:
            # Walking to the left around a centre in front means looking ever more to the right.
            sign = 1.0 if motion is Motion.ORBIT_LEFT else -1.0
            centre = _translated(z=a.orbit_radius)
            return centre @ _turned_right(sign * a.orbit_deg * fraction) @ invert_pose(centre)


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


def _translated(x: float = 0.0, z: float = 0.0) -> Array:
    pose = np.eye(4)
    pose[0, 3], pose[2, 3] = x, z
    return pose


def _turned_right(angle_deg: float) -> Array:
    """A camera turned about its y axis (down): positive angles look to the right."""
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    pose = np.eye(4)
    pose[0, 0], pose[0, 2], pose[2, 0], pose[2, 2] = cos, sin, -sin, cos
    return pose
