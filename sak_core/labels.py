"""What labels of every kind share."""

IGNORE = 255
"""The label value that neither losses nor scores look at (normals: in all three channels)."""
