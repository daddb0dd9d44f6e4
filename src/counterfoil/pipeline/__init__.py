"""Settle and deliver: the loops that move rows on, in one process (`process`).

`settle` gives rows their verdicts and groups their numbers; `audit` recounts the books from disk and `trace` says what
became of a row, both also while the loops run.
"""
