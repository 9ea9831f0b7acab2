"""`python -m podctl`."""

import sys

from podctl.cli import main

if __name__ == "__main__":
    sys.exit(main())
