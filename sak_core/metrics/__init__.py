"""Scores, one torchmetrics class a kind of task: sums on the device, synchronised over processes when
computed.

`update(output, label)` takes the network's raw output (B, C, H, W) and labels as stored, (B, H, W) or (B, H,
W, 3), with 255 ignored, in the units of the image itself. `compute()` gives a dict of Python floats, NaN where no pixel
had a label. Shares are in percent, angles in degrees, depth in metres. `details()` gives what a report can draw: every
image's own primary score, and for classes the IoU of each and the confusion matrix.
"""

from sak_core.metrics.base import TaskMetric
from sak_core.metrics.boundary import BoundaryMetric
from sak_core.metrics.classes import ClassesMetric
from sak_core.metrics.depth import DepthMetric
from sak_core.metrics.normals import NormalsMetric
from sak_core.metrics.saliency import SaliencyMetric
from sak_core.metrics.summary import delta_m

__all__ = [
    "BoundaryMetric",
    "ClassesMetric",
    "DepthMetric",
    "NormalsMetric",
    "SaliencyMetric",
    "TaskMetric",
    "delta_m",
]
