"""A saved student, ready to use: a folder or a model on the Hugging Face hub, to predictions and to features.

student = Student.from_pretrained("exported")
student(Image.open("photo.jpg"))["depth"]      # (H, W) float32
student.features(images)["stem"][3]            # (B, C, h, w), with gradients
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sak_common.errors import SakError
from sak_core.errors import UnreadableSample
from sak_core.images import pixels_of
from sak_core.miniature.network import WEIGHTS_DIR
from sak_core.student.decoder import to_map
from sak_core.student.network import StudentNetwork
from sak_core.student.pretrained_config import PretrainedConfig, RefusedModel, parse_config
from sak_core.student.stem import normalize
from sak_core.student.tiling import predict_raw
from sak_core.tasks import Task
from sak_core.tasks.outputs import readable
from sak_core.tasks.own_units import own_output
from sak_core.weights.hub import hub_or_local, hub_reason
from sak_core.weights.tensor_files import check_state, read_tensors, write_tensors

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SHIPPED_STUDENTS = {"rooms-sak": WEIGHTS_DIR / "rooms-sak"}
"""Students that ship, by name."""
STEM = "stem"
"""The stem's name among the maps of `Student.features`."""

ImageLike = Image.Image | npt.NDArray[np.uint8] | Tensor
"""One image: PIL, which is seen as its file would be (upright by its EXIF, transparency over white, 16 bits as 8); or
uint8 (H, W, 3) RGB as an array or a tensor."""

Predictions = dict[str, npt.NDArray[Any]]
"""By task: (H, W), or (H, W, 3) for normals."""


class ModelNotFound(SakError):
    """There is no such folder, and the hub does not have it or cannot be reached. The message says which."""


class Student(nn.Module):
    """A trained student that takes images as they are.

    Args:
        network: stem, paths, routers and heads, for fine-tuning.
        config: what it is and where it comes from.
    """

    def __init__(self, network: StudentNetwork, config: PretrainedConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> Self:
        """The student saved in the folder `source`, or in the model `source` ("owner/name") of the Hugging Face hub, or
        one that ships ("rooms-sak").

        The weights are on the CPU and the student in evaluation mode. Nothing from the files is executed: JSON and
        safetensors alone, both checked before memory is taken.

        Args:
            revision: branch, tag or commit on the hub.

        Raises:
            ModelNotFound: no such folder and no such model, or the hub cannot be reached.
            RefusedModel: a configuration that is damaged, hostile or of another format; weights that do not fit it.
            RefusedFile: weights that are damaged or hostile.
        """
        folder = _locate(source, revision)
        config = parse_config(folder / CONFIG)
        state = read_tensors(folder / WEIGHTS)
        try:
            with torch.device("meta"):
                check_state(
                    StudentNetwork(config.student).state_dict(), state, f"{folder / WEIGHTS} does not fit its {CONFIG}"
                )
            with torch.random.fork_rng(devices=[]):
                network = StudentNetwork(config.student)
        except (ValueError, RuntimeError, KeyError, AssertionError) as error:
            raise RefusedModel(f"{folder}: {error}") from None
        network.load_state_dict(state)
        return cls(network.eval(), config)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it predicts; () for a distilled student without heads."""
        return self.config.student.tasks

    @property
    def default_tile(self) -> int:
        """The longest side, px, that goes through whole unless asked otherwise: twice that of the training views, or
        the longer one of the only size that the student's decoder takes."""
        if self.network.fixed_size:
            return max(self.network.fixed_size)
        return 2 * max(self.config.student.stem.image_size)

    def forward(
        self, image: ImageLike, *, size: int | None = None, tile: int | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Predictions for one image of any size: see `predict`."""
        return self.predict([image], size=size, tile=tile)[0]

    @torch.inference_mode()
    def predict(
        self, images: Sequence[ImageLike], *, size: int | None = None, tile: int | None = None, batch_size: int = 8
    ) -> list[Predictions]:
        """For each image and task an array of the image's size (H, W), as `sak_core.tasks.outputs.readable` makes it.

        Args:
            images: of any sizes; those that go through at equal sizes do so together, `batch_size` at a time.
            size: longer side, px, to which larger images are scaled down before the student sees them; None leaves
                them. Depth stays in the metres of the image as it is.
            tile: longest side in px that is seen whole; larger images are cut into overlapping tiles of it.

        Raises:
            ValueError: the student has no tasks, something is no image, or `tile` is not the only size of images that
                the student's decoder takes.
        """
        if not self.tasks:
            raise ValueError("this student has no tasks: it was distilled only; use features(), or fine-tune it")
        patch, fixed = self.network.stem.multiple, self.network.fixed_size
        if fixed and tile and (tile, tile) != fixed:
            raise ValueError(
                f"tile = {tile}: this student's decoder takes {fixed[0]}x{fixed[1]} px alone; leave it out"
            )
        side = max((tile or self.default_tile) // patch, 1) * patch
        pixels = [to_pixels(image) for image in images]
        was_training = self.network.training
        self.network.eval()
        try:
            seen = [_fit(image, size) for image in pixels]
            raw = predict_raw(self.network, seen, side, batch_size)
        finally:
            self.network.train(was_training)
        return [
            {task.name: readable(task, _as_of(task, maps[task.name], fitted, image)) for task in self.tasks}
            for image, fitted, maps in zip(pixels, seen, raw, strict=True)
        ]

    def features(self, images: ImageLike | Sequence[ImageLike]) -> dict[str, list[Tensor]]:
        """The stem's and each path's maps, for use as a backbone: {"stem" or teacher: [(B, C, h, w), ...]}.

        Args:
            images: one image, several of one size, uint8 (B, H, W, 3), or float (B, 3, H, W) in [0, 1]; H and W
                multiples of the stem's patch. Levels come shallowest first, all C = stem.width channels wide on the
                grid (h, w) = (H, W) / patch, in the student's dtype. Gradients flow unless the caller says otherwise.
        """
        network = self.network
        weight = next(network.parameters())
        batch = as_batch(images).to(weight.device, weight.dtype)
        grid = network.stem.grid(batch.shape[2], batch.shape[3])
        tokens = network.stem(batch)
        return {
            name: [to_map(level.contiguous(), grid) for level in levels]
            for name, levels in {STEM: network.stem_features(tokens), **network.path_features(tokens)}.items()
        }


def save_pretrained(network: StudentNetwork, config: PretrainedConfig, folder: Path) -> None:
    """Write `config.json` and `model.safetensors` into `folder`, which `Student.from_pretrained` reads back."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write_tensors(folder / WEIGHTS, state, {"format": "pt"})
    (folder / CONFIG).write_text(config.to_json())


def to_pixels(image: ImageLike) -> Tensor:
    """An image as uint8 (H, W, 3) RGB.

    Raises:
        ValueError: it is no `ImageLike`.
    """
    if isinstance(image, Image.Image):
        try:
            image = pixels_of(image)
        except UnreadableSample as error:
            raise ValueError(str(error)) from None
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])) if isinstance(image, np.ndarray) else image
    if not isinstance(pixels, Tensor) or pixels.dtype != torch.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        what = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else type(image).__name__
        raise ValueError(f"an image is a PIL image or uint8 (H, W, 3), not {what}")
    if 0 in pixels.shape:
        raise ValueError(f"an image of {pixels.shape[0]}x{pixels.shape[1]} px")
    return pixels


def as_batch(images: ImageLike | Sequence[ImageLike]) -> Tensor:
    """Images as the stem takes them, normalised (B, 3, H, W); see `Student.features`.

    Raises:
        ValueError: they are no such images.
    """
    if isinstance(images, Tensor) and images.is_floating_point():
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"float images are (B, 3, H, W) in [0, 1], not {tuple(images.shape)}")
        return images * 2 - 1
    if isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4:
        images = list(images)
    listed = [images] if isinstance(images, (Image.Image, Tensor, np.ndarray)) else list(images)
    return normalize(torch.stack([to_pixels(image) for image in listed]))


def student_folder(source: str | Path) -> Path:
    """The folder that `source` names: that of a student that ships, or the path itself."""
    return SHIPPED_STUDENTS.get(str(source), Path(source))


def _locate(source: str | Path, revision: str | None) -> Path:
    """The local folder of a saved student: itself, that of one that ships, or fetched from the hub."""
    folder = student_folder(source)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise ModelNotFound(f"{folder} is no saved student: it holds no {CONFIG}")
        return folder
    if not HUB_ID.fullmatch(str(source)) or folder.exists():
        raise ModelNotFound(
            f"{source} is no folder of a saved student, no model of the hub (owner/name) and none that ships "
            f"({', '.join(SHIPPED_STUDENTS)})"
        )
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        with hub_or_local():
            return Path(
                huggingface_hub.snapshot_download(
                    str(source), revision=revision, allow_patterns=[CONFIG, WEIGHTS, CARD]
                )
            )
    except (HfHubHTTPError, OSError) as error:
        raise ModelNotFound(
            f"there is no folder {source}, and the hub did not give a model of that name ({hub_reason(error)})"
        ) from None


def _fit(pixels: Tensor, size: int | None) -> Tensor:
    """Pixels (H, W, 3) scaled down so that the longer side is `size` px, where it is longer."""
    height, width = pixels.shape[:2]
    if size is None or max(height, width) <= size:
        return pixels
    scale = size / max(height, width)
    target = (max(round(width * scale), 1), max(round(height * scale), 1))
    resized = Image.fromarray(pixels.cpu().numpy()).resize(target, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized))


def _as_of(task: Task, maps: Tensor, seen: Tensor, image: Tensor) -> Tensor:
    """Raw outputs (C, h, w) for an image seen at (h, w, 3), at the image's own size (H, W, 3) and in its units."""
    size, original = (seen.shape[0], seen.shape[1]), (image.shape[0], image.shape[1])
    if size == original:
        return maps
    scales = torch.tensor([[size[0] / original[0], size[1] / original[1]]], dtype=torch.float64)
    own = own_output(task, maps[None], scales)
    return F.interpolate(own, size=original, mode="bilinear", align_corners=False)[0]
