"""One suite for an interface, run on each implementation of it."""
