"""Run the stage `drift`: the same as `toolkit drift key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["drift", *sys.argv[1:]])
