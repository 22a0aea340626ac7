"""Run the stage `diff`: the same as `toolkit diff key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["diff", *sys.argv[1:]])
