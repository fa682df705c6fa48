"""TorchServe: configured, started, watched over and stopped; which versions it serves, and did."""
