"""Run the stage `show`: the same as `toolkit show key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["show", *sys.argv[1:]])
