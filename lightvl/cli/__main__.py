"""`python -m lightvl.cli` is the command `lightvl`."""

import sys

from lightvl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
