"""The operator's page and API, on a port of its own: health, metrics, and the state of the server.

    /              the state as a page: sources, destinations, writers, processes; refreshes itself
    /api/status    the same as JSON (`status.Status`)
    /metrics       what the processes count, and the books, in Prometheus's text format
    /livez         200 while the console lives
    /readyz        200 when the gateway's queue can take a row now; else 503 and why

It only reads: the ledger and the queue from beside, and what the supervisor tells of the processes. So it answers while
the pipeline is down, and nothing asked of it holds a row up. Nothing it shows is a sender's data (promise P6).
"""
