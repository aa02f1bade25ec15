"""Which thing draws the eye: contrast with its surroundings, size and place in the picture."""

import numpy as np
from scipy.ndimage import find_objects

from sak_core.miniature.rooms.arrays import Float32, Int

CLEAR_RATIO = 1.6
"""The salient thing's score is this many times the runner-up's, in the first attempts at a scene."""
LEAST_RATIO = 1.25
"""The same in later attempts."""

_MARGIN = 0.35
"""Width of the surroundings, in shares of the thing's own height and width."""


def scores(picture: Float32, instances: Int, candidates: list[int]) -> dict[int, float]:
    """Score things by contrast * area^0.3 * centrality.

    Contrast is the distance between the mean colours of the thing and of its surroundings in an opponent
    space; area a share of the picture; centrality falls from 1 in the middle to about 0.3 in the corners.

    Args:
        picture: (3, H, W) display values in [0, 1].
        instances: (H, W) instance numbers.
        candidates: instance numbers to score.

    Returns:
        the score of every candidate; 0 for one that is not to be seen.
    """
    height, width = instances.shape
    flat = instances.reshape(-1)
    size = int(max(flat.max(), max(candidates, default=0))) + 1
    area = np.bincount(flat, minlength=size)
    boxes = find_objects(instances)
    result: dict[int, float] = {}
    for number in candidates:
        if not area[number]:
            result[number] = 0.0
            continue
        rows, columns = boxes[number - 1]
        top, bottom, left, right = rows.start, rows.stop, columns.start, columns.stop
        margin_y = max(2, round((bottom - top) * _MARGIN))
        margin_x = max(2, round((right - left) * _MARGIN))
        box = (
            slice(max(top - margin_y, 0), min(bottom + margin_y, height)),
            slice(max(left - margin_x, 0), min(right + margin_x, width)),
        )
        mine = instances[box] == number
        count, total = int(mine.sum()), mine.size
        if count == total:
            result[number] = 0.0
            continue
        patch = picture[:, box[0], box[1]].reshape(3, -1)
        weight = mine.reshape(-1).astype(np.float32)
        own = patch @ weight
        rest = (patch.sum(axis=1) - own) / np.float32(total - count)
        contrast = _colour_distance(own / np.float32(count), rest)
        y = ((top + bottom) / 2 - height / 2) / (height / 2)
        x = ((left + right) / 2 - width / 2) / (width / 2)
        centrality = float(np.exp(-0.6 * (x * x + y * y)))
        result[number] = contrast * (count / flat.size) ** 0.3 * centrality
    return result


def _colour_distance(one: Float32, other: Float32) -> float:
    """Distance of two colours in lightness, red against green and blue against yellow."""
    red, green, blue = (one - other).tolist()
    light = 0.3 * red + 0.59 * green + 0.11 * blue
    return float(np.sqrt(light**2 + 0.8 * (red - green) ** 2 + 0.5 * (blue - (red + green) / 2) ** 2))
