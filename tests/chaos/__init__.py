"""Each of TorchServe's worst days, provoked on a real server: `make chaos`, `make chaos LONG=1`."""
