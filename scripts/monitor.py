"""Run the stage `monitor`: the same as `toolkit monitor key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["monitor", *sys.argv[1:]])
