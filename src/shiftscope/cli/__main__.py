"""``python -m shiftscope.cli``."""

import sys

from shiftscope.cli import main

if __name__ == "__main__":
    sys.exit(main())
