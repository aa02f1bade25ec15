"""Rooms: indoor scenes with exact labels, rendered by the program itself with numpy.

Scenes are a pure function of (seed, index, size). Objects of every class take every colour, so that what a
thing is must be read from its shape.
"""

from sak_core.miniature.rooms.dataset import Rooms
from sak_core.miniature.rooms.labels import BACKGROUND, CLASSES, COLORS, PART_CLASS, PARTS, PLACES
from sak_core.miniature.rooms.scene import RENDERER_VERSION, Scene, SceneObject, render_scene

__all__ = [
    "BACKGROUND",
    "CLASSES",
    "COLORS",
    "PARTS",
    "PART_CLASS",
    "PLACES",
    "RENDERER_VERSION",
    "Rooms",
    "Scene",
    "SceneObject",
    "render_scene",
]
