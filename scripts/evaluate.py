"""Run the stage `evaluate`: the same as `toolkit evaluate key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
