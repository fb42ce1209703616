"""Logging set-up: one format for every process of the server."""

import logging
import sys


def setup_logging(process: str, level: int = logging.INFO) -> None:
    """Sends this process's records to stderr.

    Args:
        process: Short name shown in every line, such as `front` or `engine 0`.
        level: Lowest level that is written.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname).1s {process}: %(message)s", "%H:%M:%S")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
