"""`python -m classifier` is the command `classifier`."""

from .cli import main

main()
