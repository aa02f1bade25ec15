"""Weights in files and on the hub: read without unpickling, named by their digest."""
