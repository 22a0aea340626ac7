"""Run the stage `calibrate`: the same as `toolkit calibrate key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["calibrate", *sys.argv[1:]])
