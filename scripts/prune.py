"""Run the stage `prune`: the same as `toolkit prune key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["prune", *sys.argv[1:]])
