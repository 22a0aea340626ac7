"""Run the stage `log`: the same as `toolkit log key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["log", *sys.argv[1:]])
