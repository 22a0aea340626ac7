"""Run the stage `release`: the same as `toolkit release key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["release", *sys.argv[1:]])
