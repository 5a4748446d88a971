"""Videos of a run as mp4 files that browsers play, encoded and decoded in process."""

from __future__ import annotations

import io

import av
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]

QUALITY = {"crf": "12", "x264-params": "b-adapt=0:rc-lookahead=0:mbtree=0"}
"""Without x264's look-ahead, whose decisions differ between two encodings of the same video."""
SHORT_FRAMES, SHORT_FPS, FPS = 16, 4, 16
"""Wan's own rate; clips of no more than `SHORT_FRAMES` would be over before one has looked."""


def encode_mp4(video: U8) -> bytes:
    """H.264 bytes of a uint8 [F, H, W, 3] video with even sides."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        rate = SHORT_FPS if len(video) <= SHORT_FRAMES else FPS
        stream = container.add_stream("libx264", rate=rate, options=QUALITY)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_mp4(data: bytes) -> U8:
    """Frames of an mp4 file as uint8 [F, H, W, 3]; ValueError where it holds none."""
    try:
        with av.open(io.BytesIO(data), "r") as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    # Some of FFmpeg's errors are of no common builtin kind; a file without a video stream has
    # nothing at index 0.
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"no video that FFmpeg can read: {error}") from None
    return np.stack(frames)
