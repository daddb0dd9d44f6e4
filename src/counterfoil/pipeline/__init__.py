"""Settle and deliver: the loops that move rows on."""
