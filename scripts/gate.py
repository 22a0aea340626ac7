"""Run the stage `gate`: the same as `toolkit gate key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["gate", *sys.argv[1:]])
