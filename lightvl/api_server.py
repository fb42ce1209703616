"""The server's command: `python -m lightvl.api_server`."""

import sys

from lightvl.launch import main

if __name__ == "__main__":
    sys.exit(main())
