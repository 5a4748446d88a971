"""What is checked inside the reconstruction environment, with the real packages; prints JSON.

Run by `test_da3_real.py` with that environment's Python: `python -m tests.rewards.da3_in_env DIR`.
A network of the package's own classes, reduced and random, stands in for DA3-GIANT.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file, save_model

from prompts.camera import invert_pose
from prompts.config import CameraConfig
from prompts.motions import Motion
from rewards.checks import psnr
from rewards.config import PerceptualConfig, ReconstructionConfig, RewardConfig
from rewards.lpips import LAYERS, AlexTrunk, LpipsDistance, _Lpips, head_tensors, package_works
from rewards.reconstruct.da3 import from_prediction, resized
from rewards.score import Score, ScoreFailure
from rewards.scoring import trajectory_score
from rewards.worker import ReconstructionWorker
from toyworld.scenes import Clip, random_scene, render_clip


def part(module: str, kind: str, /, **arguments: Any) -> dict[str, Any]:
    target = {"path": f"depth_anything_3.model.{module}", "name": kind, "args": "as_params"}
    return {"__object__": target, **arguments}


def reduced_config(gaussian_head: bool = True) -> dict[str, Any]:
    """DA3-GIANT's structure around the smallest backbone of the package."""
    size = {"dim_in": 768, "features": 64, "out_channels": [48, 96, 192, 384]}
    start = {"alt_start": 4, "qknorm_start": 4, "rope_start": 4}
    config = part(
        "da3",
        "DepthAnything3Net",
        net=part(
            "dinov2.dinov2",
            "DinoV2",
            name="vits",
            out_layers=[5, 7, 9, 11],
            cat_token=True,
            **start,
        ),
        head=part("dualdpt", "DualDPT", output_dim=2, **size),
        cam_enc=part("cam_enc", "CameraEnc", dim_out=384),
        cam_dec=part("cam_dec", "CameraDec", dim_in=768),
    )
    if gaussian_head:
        config["gs_head"] = part("gsdpt", "GSDPT", output_dim=38, **size)
        config["gs_adapter"] = part(
            "gs_adapter",
            "GaussianAdapter",
            sh_degree=2,
            pred_color=False,
            pred_offset_depth=True,
            pred_offset_xy=True,
            gaussian_scale_min=1e-5,
            gaussian_scale_max=30.0,
        )
    return config


def write_reduced(folder: Path, gaussian_head: bool = True) -> Path:
    """A checkpoint folder as the hub has them: config.json and model.safetensors."""
    from depth_anything_3.cfg import create_object

    config = reduced_config(gaussian_head)
    torch.manual_seed(0)
    network = create_object(config)
    folder.mkdir(parents=True)
    holder = torch.nn.Module()
    holder.model = network
    save_model(holder, str(folder / "model.safetensors"))
    (folder / "config.json").write_text(json.dumps({"model_name": "reduced", "config": config}))
    return folder


def toy(motion: Motion, height: int = 84, width: int = 112) -> Clip:
    return render_clip(
        random_scene(np.random.default_rng(1)), (motion,), height=height, width=width
    )


def scored(folder: Path, dtype: str) -> dict[str, Any]:
    """Video → network → renderer → scores, through the worker that a run uses."""
    config = RewardConfig(
        reconstruction=ReconstructionConfig.model_validate(
            {"backend": "da3", "model": str(folder), "resolution": 84, "dtype": dtype}
        )
    )
    worker = ReconstructionWorker(config, CameraConfig(), 9)
    clip = toy(Motion.PUSH_IN)
    outcome, meta_view, artifacts = worker.score(clip.video, clip.prompt, True)
    assert isinstance(outcome, Score), outcome
    again, _, _ = worker.score(clip.video, clip.prompt, False)
    assert isinstance(again, Score)
    assert meta_view is not None
    assert artifacts is not None
    return {
        "parts": dict(outcome.parts),
        "same_again": dict(again.parts) == dict(outcome.parts),
        "raw": dict(outcome.raw),
        "seconds": again.seconds,
        "meta_view": list(meta_view.shape),
        "rerender": list(artifacts.rerender.shape),
        "depth": list(artifacts.depth.shape),
        "splats": len(artifacts.splats),
        "scorer": outcome.scorer,
    }


def hand_made(clip: Clip, scale: float) -> Mapping[str, Any]:
    """What a perfect network would answer for a ray-cast clip, made by the package's own adapter:
    true depth, true cameras, one Gaussian of half a pixel on every pixel in its colour."""
    from depth_anything_3.cfg import create_object

    adapter = create_object(reduced_config()["gs_adapter"])
    frames, height, width = clip.depth.shape
    depth = torch.from_numpy(clip.depth)[None]
    extrinsics = torch.from_numpy(invert_pose(clip.c2w)).float()[None]
    intrinsics = torch.from_numpy(clip.intrinsics).float().repeat(1, frames, 1, 1)
    raw = torch.zeros(1, frames, height, width, 36)
    # Order of the adapter: 2 offsets, 3 scales, 4 quaternion (xyzw), 3 x 9 harmonics.
    raw[..., 2:5] = torch.logit(torch.tensor(0.5 / 0.2 / 30.0))
    raw[..., 8] = 1.0
    color = (torch.from_numpy(clip.video).float() / 255 - 0.5) / 0.28209479177387814
    raw[..., 9::9] = color[None]
    raw = torch.cat([raw, torch.zeros_like(raw[..., :1])], dim=-1)
    opacities = torch.full((1, frames, height, width), 0.95)
    gaussians = adapter(extrinsics, intrinsics, depth, opacities, raw, (height, width))
    moved = extrinsics[:, :, :3].clone()
    moved[..., 3] *= scale
    answer = {"extrinsics": moved, "intrinsics": intrinsics, "depth": depth * scale}
    answer |= {"depth_conf": torch.ones_like(depth), "gaussians": gaussians}
    return answer if scale == 1 else {**answer, "scale_factor": scale}


def conventions(motion: Motion, scale: float) -> dict[str, float]:
    """PSNR of the re-rendering and S_traj of a hand-made answer: 1 if nothing is mistaken."""
    clip = toy(motion)
    found = from_prediction(hand_made(clip, scale), clip.video, np.arange(9), "torch")
    path = invert_pose(found.w2c)
    traj = trajectory_score(clip.c2w, path, found.median_depth)
    return {
        "psnr": psnr(clip.video / 255, found.rerender),
        "traj": traj.score,
        "rotation_error_deg": traj.rotation_error_deg,
        "median_depth": found.median_depth,
        "true_depth": float(np.median(clip.depth[0])),
    }


def lpips_both_ways(folder: Path) -> dict[str, Any]:
    """The package and the trunk on the same random AlexNet, and the heads' order."""
    assert package_works()
    torch.manual_seed(1)
    trunk = AlexTrunk()
    names = [f"features.{place}.{kind}" for place in LAYERS for kind in ("weight", "bias")]
    tensors = {name: trunk.get_parameter(name).detach().contiguous() for name in names}
    file = folder / "alexnet.safetensors"
    save_file(tensors, file)
    package = LpipsDistance(PerceptualConfig(backend="lpips", weights=str(file)))
    own = LpipsDistance(PerceptualConfig(backend="lpips", weights=str(file)))
    own._distance = _Lpips(trunk, head_tensors()).eval().requires_grad_(False)
    video = (toy(Motion.PUSH_IN).video / 255).astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.1, video.shape)
    spoilt = np.clip(video + noise, 0, 1).astype(np.float32)
    a, b = package(video, spoilt), own(video, spoilt)
    return {
        "version": package.version,
        "difference": float(np.abs(a - b).max()),
        "distance": float(a.mean()),
        "equal": float(package(video, video).max()),
    }


def failures(folder: Path) -> dict[str, str]:
    """Sentences of what goes wrong."""
    clip = toy(Motion.FIXED)
    answers = {}
    for name, model in (
        ("no head", str(write_reduced(folder / "headless", gaussian_head=False))),
        ("missing", str(folder / "nowhere")),
        ("empty", str(folder)),
    ):
        config = RewardConfig(reconstruction=ReconstructionConfig(backend="da3", model=model))
        outcome, _, _ = ReconstructionWorker(config, CameraConfig(), 9).score(
            clip.video, clip.prompt
        )
        assert isinstance(outcome, ScoreFailure)
        assert not outcome.retry
        answers[name] = outcome.reason
    return answers


def main() -> None:
    """Run everything in a scratch folder and print what was found."""
    folder, started = Path(sys.argv[1]), time.perf_counter()
    torch.set_num_threads(1)
    model = write_reduced(folder / "reduced")
    print(
        json.dumps(
            {
                "float32": scored(model, "float32"),
                "bfloat16": scored(model, "bfloat16"),
                "conventions": {
                    f"{motion.value} x {scale:g}": conventions(motion, scale)
                    for motion in (Motion.PUSH_IN, Motion.ORBIT_LEFT, Motion.PAN_RIGHT)
                    for scale in (1.0, 3.0)
                },
                "lpips": lpips_both_ways(folder),
                "failures": failures(folder),
                "resized": list(resized(np.zeros((1, 480, 832, 3), np.uint8), 504).shape),
                "seconds": time.perf_counter() - started,
            }
        )
    )


if __name__ == "__main__":
    main()
