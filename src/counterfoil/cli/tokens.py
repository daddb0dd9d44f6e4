"""Tokens as we make them."""

from __future__ import annotations

import secrets

TOKEN_PREFIX = "cf_"  # noqa: S105 (what every token begins with)


def make_token() -> str:
    """A token that nobody guesses: 256 random bits, with a mark by which a leaked one is recognised."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)
