"""Run the stage `benchmark`: the same as `toolkit benchmark key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["benchmark", *sys.argv[1:]])
