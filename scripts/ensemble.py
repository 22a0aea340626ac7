"""Run the stage `ensemble`: the same as `toolkit ensemble key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["ensemble", *sys.argv[1:]])
