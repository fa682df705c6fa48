"""What makes and measures weights. None of it is needed to serve them."""
