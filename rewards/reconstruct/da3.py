"""Depth Anything 3 (arXiv 2511.10647): video → Gaussians, cameras and confidence, feed-forward.

The network alone is taken from the depth-anything-3 package: its API module imports a dozen
packages that no inference needs. Frames are resized so that the longer side is `resolution`, both
sides to whole patches of 14; intrinsics, re-rendering and S_recon are at that size.

Frames when memory binds: at most `max_frames`, evenly spaced, first and last among them; after each
out-of-memory error of the GPU two thirds of them, down to three, and never more again in that
worker. How many were used is logged as `frames`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rewards.config import ReconstructionConfig
from rewards.gaussians import Gaussians, Renderer, render
from rewards.metrics.images import resize_frames
from rewards.rasterizer import MIN_ALPHA
from rewards.reconstruct.flow import F32, mean_motion
from rewards.reconstruct.reconstruction import Reconstruction, ReconstructionError, chosen_frames
from rewards.weights import WeightsMissing, weights_folder

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]

PATCH = 14
MIN_FRAMES = 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet statistics of the network's input."""
KEY = "rewards.reconstruction.model"
FILES = ("config.json", "model.safetensors")
PACKAGE = "depth_anything_3"


class DepthAnything3:
    """Video → Reconstruction by a model with a Gaussian head."""

    def __init__(self, config: ReconstructionConfig, device: str = "cpu") -> None:
        """Loads nothing yet: the first call does, or raises WeightsMissing."""
        self.config, self.device = config, torch.device(device)
        self.version = f"da3-0.1.1({config.model}, {config.resolution}, {config.dtype})"
        self._limit = config.max_frames

    @cached_property
    def network(self) -> nn.Module:
        """The network with its weights, on the device."""
        return load_network(self.config.model).to(self.device)

    def __call__(self, video: U8, intrinsics: F64) -> Reconstruction:
        """Reconstruct a video uint8 [F, H, W, 3]; the given intrinsics are not looked at.

        Raises ReconstructionError when there is no camera, no depth or no Gaussian to use.
        """
        if len(video) < MIN_FRAMES:
            raise ReconstructionError(
                f"no camera found: {len(video)} frames; needed: {MIN_FRAMES}", retry=False
            )
        network = self.network
        while True:
            frames = chosen_frames(len(video), self._limit)
            shown = resized(video[frames], self.config.resolution)
            for _ in range(2):  # once more: a neighbour that died a moment ago may have held it
                try:
                    return self._reconstruct(network, shown, frames)
                except torch.OutOfMemoryError:
                    pass  # while it is handled, its traceback holds what did not fit
                torch.cuda.empty_cache()
            if len(frames) <= MIN_FRAMES:
                raise ReconstructionError(
                    f"{MIN_FRAMES} frames of {shown.shape[1]} x {shown.shape[2]} pixels do not "
                    "fit into the GPU's memory; set a smaller rewards.reconstruction.resolution"
                )
            self._limit = max(len(frames) * 2 // 3, MIN_FRAMES)

    def _reconstruct(
        self, network: nn.Module, shown: U8, frames: NDArray[np.intp]
    ) -> Reconstruction:
        output = self._predict(network, shown)
        return from_prediction(output, shown, frames, self.config.renderer)

    @torch.inference_mode()
    def _predict(self, network: nn.Module, video: U8) -> Mapping[str, Any]:
        images = torch.from_numpy(video).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (images.new_tensor(x)[:, None, None] for x in (MEAN, STD))
        images = ((images - mean) / std)[None]
        half = self.config.dtype == "bfloat16"
        # The nested model samples pixels for a quantile: same video, same numbers.
        with (
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
            torch.autocast(self.device.type, torch.bfloat16, enabled=half),
        ):
            torch.manual_seed(0)
            output: Mapping[str, Any] = network(
                images, None, None, export_feat_layers=[], infer_gs=True
            )
        return output


def load_network(model: str) -> nn.Module:
    """The package's network for a folder or hub id, with its weights; on the CPU, for inference.

    A known model name builds the package's own configuration; another one must bring a `config`
    that names classes of that package alone. Raises WeightsMissing.
    """
    try:
        from depth_anything_3.cfg import create_object, load_config
        from depth_anything_3.registry import MODEL_REGISTRY
    except ImportError as error:
        raise WeightsMissing(
            f"rewards.reconstruction.backend = 'da3' needs the depth-anything-3 package ({error}); "
            "make its environment with `worldr1 envs build reconstruction`"
        ) from None
    from safetensors.torch import load_model

    folder = weights_folder(KEY, model, FILES)
    described = json.loads((folder / FILES[0]).read_text())
    name = described.get("model_name")
    if name in MODEL_REGISTRY:
        config = load_config(MODEL_REGISTRY[name])
    else:
        config = described.get("config")
        if not isinstance(config, dict):
            raise WeightsMissing(f"{folder / FILES[0]} names no model that is known: {name!r}")
        require_own_classes(config)
    network: nn.Module = create_object(config)
    core = getattr(network, "da3", network)
    if getattr(core, "gs_head", None) is None:
        raise WeightsMissing(f"{KEY} = {model!r} ({name}) has no Gaussian head")
    holder = nn.Module()  # the hub's tensors are named after the package's outer class
    holder.model = network
    try:
        missing, _ = load_model(holder, folder / FILES[1], strict=False)
    except RuntimeError as error:  # another shape
        reason = " ".join(str(error).split())[:300]
        raise WeightsMissing(f"{KEY} = {model!r} does not fit {name}: {reason}") from None
    if missing:
        raise WeightsMissing(
            f"{KEY} = {model!r} does not fit {name}: {len(missing)} tensors are missing, the first "
            f"is {sorted(missing)[0]}"
        )
    return network.eval().requires_grad_(False)


def require_own_classes(config: Any) -> None:
    """Raise WeightsMissing where a model's configuration names anything but a network class of the
    package, or holds an expression: the package would import, call and evaluate all of it."""
    if isinstance(config, dict):
        target = config.get("__object__")
        if target is not None and not _is_own_network(target):
            raise WeightsMissing(
                f"a model's config.json names {target}: no network class of {PACKAGE}.model"
            )
        for value in config.values():
            require_own_classes(value)
    elif isinstance(config, list):
        for value in config:
            require_own_classes(value)
    elif isinstance(config, str) and "${" in config:
        raise WeightsMissing(f"a model's config.json holds the expression {config!r}")


def _is_own_network(target: Any) -> bool:
    """Whether an `__object__` is a class of the package's networks, defined where it says."""
    if not isinstance(target, dict) or not set(target) <= {"path", "name", "args"}:
        return False
    path, name = str(target.get("path", "")), str(target.get("name", ""))
    if not path.startswith(f"{PACKAGE}.model."):
        return False
    try:
        found = getattr(importlib.import_module(path), name, None)
    except ImportError:
        return False
    return isinstance(found, type) and issubclass(found, nn.Module) and found.__module__ == path


def resized(video: U8, resolution: int) -> U8:
    """Frames [F, h, w, 3] whose longer side is `resolution`, both sides to whole patches."""
    height, width = video.shape[1:3]
    factor = resolution / max(height, width)
    size = [max(round(side * factor / PATCH), 1) * PATCH for side in (width, height)]
    return video if size == [width, height] else resize_frames(video, *size)


def from_prediction(
    output: Mapping[str, Any], video: U8, frames: NDArray[np.intp], renderer: Renderer
) -> Reconstruction:
    """Reconstruction from the network's answer for `video` [F, H, W, 3].

    The answer, batch first: `extrinsics` [1, F, 3 or 4, 4] world-to-camera in OpenCV axes,
    `intrinsics` [1, F, 3, 3] in pixels, `depth` and `depth_conf` [1, F, H, W], `gaussians` in the
    world. The nested model's depth and translations are metric, its Gaussians are not: what it
    scaled by `scale_factor` is scaled back. Raises ReconstructionError.
    """
    height, width = video.shape[1:3]
    scale = float(output.get("scale_factor") or 1.0)
    w2c = _rigid(_array(output["extrinsics"])[0], scale)
    intrinsics = _array(output["intrinsics"])[0].astype(np.float64)
    depth = _array(output["depth"]).reshape(len(video), height, width) / scale
    if not (np.isfinite(w2c).all() and np.isfinite(intrinsics).all()):
        raise ReconstructionError("no camera found: the predicted cameras are not finite")
    medians = [float(np.median(d[np.isfinite(d)])) if np.isfinite(d).any() else 0.0 for d in depth]
    if min(medians[0], medians[len(medians) // 2]) <= 0:
        raise ReconstructionError("no depth found: nothing finite in front of the camera")
    gaussians = _usable(output.get("gaussians"))
    with torch.no_grad():
        rgb, _, _ = render(
            gaussians,
            torch.from_numpy(w2c),
            torch.from_numpy(intrinsics),
            height,
            width,
            renderer=renderer,
        )
    rerender = rgb.clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return Reconstruction(
        gaussians=gaussians,
        w2c=w2c,
        intrinsics=intrinsics,
        confidence=_array(output["depth_conf"]).reshape(depth.shape).astype(np.float32),
        frames=frames,
        video=video,
        rerender=np.ascontiguousarray(rerender),
        median_depth=medians[0],
        middle_depth=medians[len(medians) // 2],
        motion_px=mean_motion(video),
    )


def _array(tensor: Tensor) -> F32:
    return np.asarray(tensor.detach().float().cpu().numpy(), np.float32)


def _rigid(extrinsics: F32, scale: float) -> F64:
    """w2c [F, 4, 4] in float64: the nearest rotations, translations in the Gaussians' unit."""
    w2c = np.tile(np.eye(4), (len(extrinsics), 1, 1))
    if not np.isfinite(extrinsics).all():
        raise ReconstructionError("no camera found: the predicted cameras are not finite")
    u, _, vh = np.linalg.svd(extrinsics[:, :3, :3].astype(np.float64))
    w2c[:, :3, :3] = u @ vh
    w2c[:, :3, 3] = extrinsics[:, :3, 3] / scale
    return w2c


def _usable(found: Any) -> Gaussians:
    """The predicted Gaussians that are finite and can be seen at all."""
    if found is None:
        raise ReconstructionError("no Gaussians: the model has no Gaussian head", retry=False)
    harmonics = found.harmonics[0].float()
    everything = Gaussians(
        means=found.means[0].float(),
        scales=found.scales[0].float(),
        quats=found.rotations[0].float(),
        opacities=found.opacities[0].float().reshape(-1),
        colors=harmonics.mT.contiguous(),
    )
    fields = (everything.means, everything.scales, everything.quats, everything.colors.flatten(1))
    usable = torch.cat([torch.isfinite(x).all(dim=1, keepdim=True) for x in fields], dim=1).all(1)
    usable &= everything.opacities >= MIN_ALPHA
    usable &= (everything.scales > 0).all(dim=1)
    if not usable.any():
        raise ReconstructionError(
            f"zero Gaussians: none of {len(everything)} is finite and visible"
        )
    return everything if usable.all() else everything.at(usable)
