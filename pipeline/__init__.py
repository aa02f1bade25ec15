"""The top floor: one file per stage, the command line, configuration and recipes."""
