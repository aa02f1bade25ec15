"""The top floor: packages for extraction, training, studies, maintenance and export; the command line; recipes."""

__version__ = "0.1.0"
