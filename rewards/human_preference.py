"""HPSv3, the scorer of human preference that the paper uses for R_gen, through its own package.

Its raw scale is open (good pictures near 10, poor ones below 0); `AestheticConfig.offset` and
`scale` say what of it becomes R_gen.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rewards.config import AestheticConfig
from rewards.score import Verdict
from rewards.weights import WeightsMissing, weights_file

WEIGHTS_FILE = "HPSv3.safetensors"


class HumanPreference:
    """Scores frames with HPSv3."""

    def __init__(self, config: AestheticConfig, device: str) -> None:
        """Load the model. Raises WeightsMissing."""
        from hpsv3 import HPSv3RewardInferencer

        self._batch = config.batch
        weights = weights_path(config.model)
        with tempfile.TemporaryDirectory() as folder:
            settings = Path(folder) / "inference.yaml"
            settings.write_text(_settings(config.base, device, folder))
            try:
                self._model: Any = HPSv3RewardInferencer(
                    config_path=str(settings), checkpoint_path=weights, device=device
                )
            except OSError as error:
                raise WeightsMissing(
                    f"rewards.aesthetic.base = {config.base!r} cannot be loaded: {_first(error)}"
                ) from error
        self.version = f"hpsv3-{version('hpsv3')}:{config.model}"

    def __call__(self, frames: NDArray[np.uint8], description: str) -> Verdict:
        """Mean score mu of frames uint8 [K, H, W, 3] of a video made for a description."""
        scores = []
        for start in range(0, len(frames), self._batch):
            pictures = [Image.fromarray(frame) for frame in frames[start : start + self._batch]]
            with torch.no_grad():
                # By name: 1.0.1 has the two in the other order.
                answer = self._model.reward(
                    image_paths=pictures, prompts=[description] * len(pictures)
                )
            scores.append(answer.float().cpu().numpy())
        mu, sigma = np.concatenate(scores).mean(axis=0)
        return Verdict(float(mu), {"aesthetic_sigma": float(sigma)})


def weights_path(model: str) -> str:
    """The weights' file, from a path or a hub repository. Raises WeightsMissing.

    The package would unpickle a file of another kind.
    """
    file = weights_file("rewards.aesthetic.model", model, WEIGHTS_FILE)
    if file.suffix != ".safetensors":
        raise WeightsMissing(f"rewards.aesthetic.model = {model!r} is no .safetensors file")
    return str(file)


def _settings(base: str, device: str, folder: str) -> str:
    """The package's own settings with another base model, and in float32 on a CPU."""
    import hpsv3
    from omegaconf import OmegaConf

    settings: Any = OmegaConf.load(Path(hpsv3.__file__).parent / "config" / "HPSv3_7B.yaml")
    settings.model_name_or_path, settings.output_dir = base, folder
    # Of training alone, and with requirements of its own.
    settings.pop("deepspeed", None)
    if device == "cpu":
        settings.bf16, settings.torch_dtype, settings.use_cpu = False, "float32", True
    return str(OmegaConf.to_yaml(settings))


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
