"""What labels of every kind share."""

IGNORE = 255
"""The label value that neither losses nor scores look at (normals: in all three channels)."""

FARTHEST_M = 80.0
"""Depth from here on, in the image's own metres, is not scored."""
