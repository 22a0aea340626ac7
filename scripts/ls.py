"""Run the stage `ls`: the same as `toolkit ls key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["ls", *sys.argv[1:]])
