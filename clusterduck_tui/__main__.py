"""``python -m clusterduck_tui``."""

from __future__ import annotations

import sys

from clusterduck_tui.app import main

if __name__ == "__main__":
    sys.exit(main())
