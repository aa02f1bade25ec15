"""The top floor: a room for making caches, for training, studies, upkeep and taking away; the command line; recipes."""

__version__ = "0.1.0"
