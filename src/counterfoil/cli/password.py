"""`counterfoil password`: a password for the console."""

from __future__ import annotations

from counterfoil.cli.options import JsonOption
from counterfoil.cli.printing import print_json, print_line


def password(as_json: JsonOption = False) -> None:
    """Make a password for the console.

    It is printed this once, with the line of the configuration that holds its hash. Changes nothing.
    """
    import hashlib
    import secrets

    made = secrets.token_urlsafe(32)
    password_sha256 = hashlib.sha256(made.encode()).hexdigest()
    if as_json:
        print_json({"password": made, "password_sha256": password_sha256})
        return
    print_line(f"the console's password, printed this once: {made}")
    print_line("In the configuration, below [console]; any user name goes with it:")
    print_line(f'password_sha256 = "{password_sha256}"')
