"""Run the stage `adopt`: the same as `toolkit adopt key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["adopt", *sys.argv[1:]])
