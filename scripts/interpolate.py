"""Run the stage `interpolate`: the same as `toolkit interpolate key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["interpolate", *sys.argv[1:]])
