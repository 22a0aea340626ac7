"""Run the stage `upgrade`: the same as `toolkit upgrade key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["upgrade", *sys.argv[1:]])
