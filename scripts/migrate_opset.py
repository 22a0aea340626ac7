"""Run the stage `migrate_opset`: the same as `toolkit migrate_opset key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["migrate_opset", *sys.argv[1:]])
