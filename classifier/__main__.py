"""`python -m classifier` is the command `classifier`."""

from .process import end_in_order

# As a container's first process it would not get a SIGTERM that nobody handles: at once, for what
# comes next takes a second.
end_in_order()

from .cli import main  # noqa: E402

main()
