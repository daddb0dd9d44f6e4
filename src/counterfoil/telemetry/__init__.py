"""Logs and metrics: what an operator sees of the server, and nothing of what senders send (promise P6).

A leaf: it imports nothing of the house, and nothing that matters hangs on it. Each package says by a Protocol or a
callable of its own what it reports; the processes hand it an observer from `metrics`.
"""
