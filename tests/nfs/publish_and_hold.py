"""Publishes a ledger, and stops for good when all that is left to do is to rename the new one.

Usage: publish_and_hold.py LEDGER MARK. It makes the file MARK then, and waits to lose its power.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from clusterduck.ledger import publish


def hold_at_rename(event: str, arguments: tuple[object, ...]) -> None:
    if event == "os.rename" and str(arguments[1]) == os.path.abspath(sys.argv[1]):
        Path(sys.argv[2]).touch()
        signal.pause()


if __name__ == "__main__":
    sys.addaudithook(hold_at_rename)
    while True:  # until there is something new that nobody else has published
        publish.main([sys.argv[1]])
        time.sleep(0.1)
