"""``python -m aimnet2mult.training train.yaml``."""

import sys

from aimnet2mult.training.cli_args import main

if __name__ == "__main__":
    sys.exit(main())
