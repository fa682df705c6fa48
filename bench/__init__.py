"""The same net behind our server and behind those that one might pick instead, measured."""
