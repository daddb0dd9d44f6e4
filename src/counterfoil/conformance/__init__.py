"""The conformance kit: tests any server of this API over HTTP, and knows nothing of the server's inside.

    cases/*.toml ─▶ cases ──Case─▶ requests ──bytes─▶ wire ──Answer─▶ judging ──findings─▶ suite ──Outcome─▶ report

The cases are data, one file a section of the contract, so that somebody who writes a server in another language can
read them, run them here, or run them with a tool of their own; docs/conformance.md describes their form.

Invariants:

- A case ends in one of three outcomes: it passed, it fell short (what was expected, what came), or it was not tried
  (why). A connection that breaks is an outcome, never a traceback.
- Every distinctId is fresh for each run, so that a run never meets what an earlier one sent.
- No token is ever printed: reports show `<token>` in its place.
- Nothing here imports another part of the house, and only the command line imports this.
"""
