"""PSNR and SSIM are those of a library, and of a calculation by hand."""

from __future__ import annotations

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from rewards.metrics.images import MAX_DB, psnr_frames, resize_frames, ssim_frames


def videos(noise: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    first = rng.random((3, 40, 56, 3))
    return first, np.clip(first + rng.normal(0, noise, first.shape), 0, 1)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_equal_to_scikit_image(noise: float) -> None:
    first, second = videos(noise)
    for index in range(len(first)):
        pair = first[index], second[index]
        psnr = peak_signal_noise_ratio(*pair, data_range=1.0)
        assert psnr_frames(first, second)[index] == pytest.approx(psnr, abs=1e-9)
        ssim = structural_similarity(
            *pair,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1,
        )
        assert ssim_frames(first, second)[index] == pytest.approx(ssim, abs=1e-9)


def test_by_hand() -> None:
    grey = np.full((1, 16, 16, 3), 0.5)
    assert psnr_frames(grey, grey + 0.1)[0] == pytest.approx(20.0)  # 10 log10(1 / 0.1²)
    assert psnr_frames(grey, grey)[0] == MAX_DB
    # Without variance only the luminance factor is left: (2ab + C1) / (a² + b² + C1).
    expected = (2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4)
    assert ssim_frames(grey, grey + 0.1)[0] == pytest.approx(expected, abs=1e-9)
    assert ssim_frames(grey, grey)[0] == pytest.approx(1.0)


def test_wrong_shapes_are_refused() -> None:
    first, second = videos(0.1)
    with pytest.raises(ValueError, match="equal"):
        psnr_frames(first, second[:2])
    with pytest.raises(ValueError, match="11 pixels"):
        ssim_frames(first[:, :8], second[:, :8])


def test_shrinking_averages_areas() -> None:
    clip = (2 * np.arange(16, dtype=np.uint8)).reshape(1, 4, 4, 1).repeat(3, axis=3)
    assert resize_frames(clip, 2, 2)[0, ..., 0].tolist() == [[5, 9], [21, 25]]
