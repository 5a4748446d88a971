"""The tables of the World-R1 paper (arXiv 2604.24764), to stand beside ours.

Other models, sizes, scorers and estimators: the shape of the tables can be compared (what rises,
what an ablation costs), the numbers cannot.
"""

from __future__ import annotations

from collections.abc import Mapping

MAIN_COLUMNS = ("PSNR", "SSIM", "LPIPS", "MVCS", "RotErr", "TransErr", "CamMC")
MAIN: Mapping[str, tuple[float, ...]] = {
    "Wan2.1 1.3B": (17.40, 0.550, 0.467, 0.974, 9.29, 62.94, 66.21),
    "World-R1 Small": (27.63, 0.858, 0.201, 0.989, 1.50, 2.76, 3.39),
    "Wan2.1 14B": (19.76, 0.629, 0.405, 0.963, 17.01, 60.90, 70.55),
    "World-R1 Large": (27.67, 0.865, 0.162, 0.993, 1.21, 1.30, 2.95),
}

ABLATION_COLUMNS = ("PSNR", "SSIM", "LPIPS", "VBench avg")
ABLATIONS: Mapping[str, tuple[float, ...]] = {
    "full": (27.63, 0.858, 0.201, 85.21),
    "no_s_meta": (26.91, 0.841, 0.218, 83.67),
    "no_s_recon": (25.14, 0.798, 0.271, 84.35),
    "no_s_traj": (26.27, 0.829, 0.237, 84.53),
    "no_3d_reward": (18.93, 0.502, 0.496, 84.96),
    "no_general_reward": (27.57, 0.849, 0.206, 83.44),
    "no_noise_transport": (24.46, 0.745, 0.298, 76.39),
    "no_decoupling": (27.89, 0.898, 0.192, 82.64),
    "third_of_prompts": (25.82, 0.812, 0.258, 83.23),
    "two_thirds_of_prompts": (26.54, 0.839, 0.223, 84.76),
}
"""By the names of our variants; the last two are the paper's 1K and 2K of 3K prompts."""
