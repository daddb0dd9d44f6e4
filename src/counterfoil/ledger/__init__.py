"""What became of each row: seen index, verdicts, counters, cursors."""
