"""Sheets of pictures: frames that are shown, captions that fit, columns of equal height."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from cluster.strips import MARGIN, TEXT_HEIGHT, WIDTH, blank, caption, sheet_png, strip


def test_strip_shows_first_and_last_frame_and_three_between() -> None:
    video = np.zeros((9, 64, 96, 3), np.uint8)
    video[:] = (np.arange(9) * 20)[:, None, None, None]
    row = strip(video)
    assert row.shape == (96, WIDTH, 3)
    assert row[48, MARGIN + 72 :: 150, 0].tolist() == [0, 40, 80, 120, 160]


def test_caption_of_any_length_leaves_its_margin_white() -> None:
    short, long = caption("a red box"), caption("a red box on a green floor " * 20)
    assert short.shape == long.shape == (TEXT_HEIGHT, WIDTH, 3)
    assert (long[:, -MARGIN:] == 255).all()
    assert (long[:, -100:-50] < 255).any()
    assert (short[:, WIDTH // 2 :] == 255).all()


def test_sheet_has_two_columns_of_equal_height() -> None:
    sheet = Image.open(io.BytesIO(sheet_png([blank(40), blank(60), blank(30)])))
    assert sheet.size == (2 * WIDTH, 100)
    assert Image.open(io.BytesIO(sheet_png([blank(40)]))).size == (WIDTH, 40)
