"""Tests against real parts: a real TorchServe, real images, real archives."""
