"""Run the command line: ``python -m shiftscope``."""

import sys

from shiftscope.cli import main

if __name__ == "__main__":
    sys.exit(main())
