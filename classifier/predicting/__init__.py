"""Pictures in, predictions out: what asks a server, and what it is asked."""
