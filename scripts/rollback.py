"""Run the stage `rollback`: the same as `toolkit rollback key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["rollback", *sys.argv[1:]])
