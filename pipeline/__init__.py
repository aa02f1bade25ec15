"""The top floor: one file per stage, the command line, configuration and recipes."""

__version__ = "0.1.0"
