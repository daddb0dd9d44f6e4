"""Files that fail, and files that forget: twins of `RealFiles` for tests."""
