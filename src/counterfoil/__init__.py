"""Counterfoil: an event ingest gateway that keeps a counterfoil for every row.

Where a row goes, and the package that knows that part:

    sender --HTTP--> gateway --frame--> queue --frame--> settle --verdicts--> deliver --batch--> destination
                       |                                   |                    |
                    contract                             ledger <---------------+

Promises P1 to P6 stand in docs/architecture.md.
"""

__version__ = "0.1.0"
