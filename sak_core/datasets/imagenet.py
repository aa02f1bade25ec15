"""ImageNet-1k as class folders, for unlabelled training; which class a folder is does not matter.

    <root>/{train,val}/<class>/*.JPEG    or    <root>/ILSVRC/Data/CLS-LOC/{train,val}/...

A flat `val`, as downloaded, serves too. The dataset is Russakovsky et al., IJCV 2015.
"""

from __future__ import annotations

from pathlib import Path

from sak_core.datasets.folder import ImageFolder, check_root
from sak_core.errors import NoSuchSplit

_INNER = Path("ILSVRC") / "Data" / "CLS-LOC"


def open_imagenet(root: Path, split: str) -> ImageFolder:
    """One split of ImageNet-1k: "train" in stage 1's views, "val" whole.

    Raises:
        DatasetError: `root` is no folder, or is not laid out as ImageNet.
    """
    check_root(root)
    places = [root / split, root / _INNER / split]
    for place in places:
        if place.is_dir():
            return ImageFolder(place, split, name="imagenet")
    raise NoSuchSplit(f"{root} is not laid out as ImageNet: neither {places[0]} nor {places[1]} is there")
