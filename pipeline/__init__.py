"""The top floor: packages for extraction, training, studies, maintenance and export; the command line; recipes."""

__version__ = "0.1.0"
PAPER = "https://arxiv.org/abs/2410.14633"
"""Of the method."""
