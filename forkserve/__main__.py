"""``python -m forkserve``: the same as the command ``forkserve``."""

from forkserve.cli import main

if __name__ == "__main__":
    main()
