"""`python -m pipeline` is the `sak` command."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
