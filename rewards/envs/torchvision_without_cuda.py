"""Lets a CUDA build of torchvision be imported under a CPU build of torch.

torchvision registers Python kernels for operators whose schemas its CUDA library would bring; that
library does not load without CUDA, and the import fails. The schemas are defined right before
torchvision is imported. Every interpreter of the environment imports this module, so it costs
nothing until then.
"""

from __future__ import annotations

import importlib.abc
import sys
from importlib.metadata import version

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Finds nothing; acts once when torchvision is looked for."""

    def __init__(self) -> None:
        self.acted = False
        self.library: object = None

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name != "torchvision" or self.acted:
            return
        self.acted = True
        import torch

        if torch.version.cuda is None and not version("torchvision").endswith("+cpu"):
            # The definitions live as long as the library object.
            self.library = library = torch.library.Library("torchvision", "DEF")
            for schema in SCHEMAS:
                library.define(schema)


sys.meta_path.insert(0, _BeforeTorchvision())
