"""`python -m toolkit.cli`: the same as `toolkit`."""

from toolkit.cli import main

main()
