"""The durable log: frames in, and nothing acknowledged that is not flushed."""
