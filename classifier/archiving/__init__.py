"""Archives: built, kept in the model store, and loaded without a server."""
