"""Run the stage `finetune`: the same as `toolkit finetune key=value ...`."""

import sys

from toolkit.cli import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
