"""`python -m classifier` is the command `classifier`."""

import signal
import sys

# As a container's first process it would not get a SIGTERM that nobody handles; and whoever is
# under way when it comes can clean up.
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))

from .cli import main  # noqa: E402

main()
