"""The sending side: files of history in, /batch requests out, every row accounted for.

    file --records--> mapping --rows--> batches --HTTP--> any server of this API
                                          |                    |
                                       journal <--- answers ---+---> FILE.rejected.ndjson

What it promises, each with a test of its name:

    B1. read = accepted + rejected + skipped, for every job that came to its end.
    B2. A rejected record stands in the rejected file with its place and its original, before its batch is confirmed.
    B3. Progress is claimed only after the journal is flushed; a job killed at any moment goes on from there, and sends
        nothing that the journal confirms.
    B4. A record gets the same distinctId whenever the job runs, so what was in flight is a repeat that servers take.
    B5. A file that is not the one a job began with is refused.
    B6. Memory is bounded whatever the file's size.
"""

from counterfoil.backfill.dryrun import DryRun, dry_run
from counterfoil.backfill.errors import BackfillError
from counterfoil.backfill.job import Report, Stopped, backfill, job_status
from counterfoil.backfill.mapping import Mapping, load_mapping

__all__ = [
    "BackfillError",
    "DryRun",
    "Mapping",
    "Report",
    "Stopped",
    "backfill",
    "dry_run",
    "job_status",
    "load_mapping",
]
