"""Run the stage `export`: the same as `toolkit export key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
