"""Lets a torchvision that was built for CUDA be imported beside a torch that was built without.

The set-up copies this file into the host's environment with a ``.pth`` file that imports it. Then its compiled operators cannot
be loaded, and torchvision stops at the two that its Python code describes further; declared without a body, they can be
described, and nothing in these tests calls them. Where the operators load, nothing is declared.
"""

import importlib.util
import sys
from pathlib import Path

OPERATORS = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


class BeforeTorchvision:
    """An import hook that finds nothing itself: it only notices when torchvision is about to be imported."""

    library = None

    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and not _loads(Path(spec.origin).parent):
            BeforeTorchvision.library = _declared()


def _loads(package: Path) -> bool:
    import torch

    try:
        for binary in (*package.glob("_C*.so"), *package.glob("_C*.pyd")):
            torch.ops.load_library(binary)
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, OPERATORS[0])


def _declared():
    import torch

    library = torch.library.Library("torchvision", "DEF")  # its operators are gone when nobody holds it
    for operator in OPERATORS:
        library.define(operator + SIGNATURE)
    return library


sys.meta_path.insert(0, BeforeTorchvision())
