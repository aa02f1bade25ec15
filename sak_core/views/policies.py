"""How views are drawn: the settings, and the published ones by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from sak_common.names import UnknownName, unknown

Size = tuple[int, int]
Range = tuple[float, float]

POLICY_KINDS = ("random-resized-crop", "scale-crop", "pad")


@dataclass(frozen=True)
class ViewPolicy:
    """How views are drawn.

    Attributes:
        kind: "random-resized-crop": a box of random area and aspect, inside the image, resized to the canvas (as
                torchvision's RandomResizedCrop draws it).
            "scale-crop": the image is scaled by a random factor and a canvas-sized piece is cut out at random; an
                image smaller than the canvas is padded around its centre.
            "pad": the whole image in the canvas' centre, padded; an image larger than the canvas is first scaled
                down to fit. Draws nothing.
        scale: "random-resized-crop": range of the box's area over the image's; "scale-crop": range of the factor.
        ratio: range of the box's width over height ("random-resized-crop").
        max_class_share: "scale-crop" draws the cut anew, up to `redraws` times, while one class fills more than this
            share of the valid pixels of the sample's semantic labels, or no pixel is valid.
        fit: "scale-crop": the factor is relative to the image's size as it is (False) or to the smallest size that
            covers the canvas (True; then factors of 1 and more never pad).
        flip: probability of mirroring.
        colour: probability of each of the four colour changes.
        brightness: largest shift, in grey levels of 255.
        contrast, saturation: range of the factor.
        hue: largest turn, degrees of 360.
        antialias: whether scaling down averages over the pixels it skips.
        fill: RGB uint8 of padding.
    """

    kind: str
    scale: Range = (1.0, 1.0)
    ratio: Range = (3 / 4, 4 / 3)
    max_class_share: float = 1.0
    redraws: int = 10
    fit: bool = False
    flip: float = 0.0
    colour: float = 0.0
    brightness: float = 0.0
    contrast: Range = (1.0, 1.0)
    saturation: Range = (1.0, 1.0)
    hue: float = 0.0
    antialias: bool = True
    fill: tuple[int, int, int] = (124, 116, 104)

    def __post_init__(self) -> None:
        if self.kind not in POLICY_KINDS:
            raise UnknownName(unknown("view policy", self.kind, POLICY_KINDS))
        for name in ("scale", "ratio", "contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"view policy: {name} {(low, high)} must be 0 < low <= high")
            object.__setattr__(self, name, (float(low), float(high)))
        for name in ("flip", "colour", "max_class_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"view policy: {name} {getattr(self, name)} must lie in 0..1")
        object.__setattr__(self, "fill", tuple(int(value) for value in self.fill))
        if len(self.fill) != 3 or not all(0 <= value <= 255 for value in self.fill):
            raise ValueError(f"view policy: fill {self.fill} must be three values in 0..255")

    @property
    def stretches(self) -> bool:
        """Whether its views have another aspect ratio than the image, by more than the rounding to whole px."""
        return self.kind == "random-resized-crop"

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; `from_dict` reads it back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self:
        """The policy that `to_dict` described.

        Raises:
            UnknownName: no policy has such a key.
        """
        known = [field.name for field in fields(cls)]
        for key in value:
            if key not in known:
                raise UnknownName(unknown("view policy setting", key, known))
        read: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
        return cls(**read)


IMAGENET_MEAN = (124, 116, 104)
"""ImageNet's mean colour, RGB uint8: what published pipelines pad with."""

EVALUATION = ViewPolicy("pad", fill=IMAGENET_MEAN)
"""Published for evaluation: centred padding alone."""

STAGE1 = ViewPolicy("random-resized-crop", scale=(0.08, 1.0), flip=0.5, fill=IMAGENET_MEAN)
"""Published for stage 1 (ImageNet, 384 px): random resized crop with torchvision's ranges, flip."""

STAGE2 = ViewPolicy(
    "scale-crop",
    scale=(0.5, 2.0),
    max_class_share=0.75,
    flip=0.5,
    colour=0.5,
    brightness=32.0,
    contrast=(0.5, 1.5),
    saturation=(0.5, 1.5),
    hue=36.0,
    antialias=False,
    fill=IMAGENET_MEAN,
)
"""Published for stage 2: NYUD at `NYUD_SIZE`, PASCAL-Context at `PASCAL_SIZE`. (Hue ±18 in OpenCV's 180.)"""

NYUD_SIZE: Size = (448, 576)
PASCAL_SIZE: Size = (512, 512)

_MILD = replace(
    EVALUATION, colour=0.5, brightness=16.0, contrast=(0.8, 1.25), saturation=(0.8, 1.25), hue=9.0, flip=0.5
)

ROOMS_TRAIN = replace(_MILD, kind="scale-crop", scale=(0.8, 1.25), fit=True)
"""For `rooms` with labels: scaled and cut, flip, mild colour. Factors lie about 1, the scale of evaluation: views that
are larger on average have nearer depths, and a short training keeps that bias."""

ROOMS_UNLABELLED = replace(_MILD, kind="random-resized-crop", scale=(0.5, 1.0))
"""For `rooms` without labels: random resized crop, flip, mild colour."""
