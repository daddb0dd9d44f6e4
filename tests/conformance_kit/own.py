"""The kit against our own server: `make conformance`.

    make conformance                          every case but the slow ones
    make conformance ARGS="--slow --junit conformance.xml"

The server is a whole one, in a directory that is gone afterwards: gateway, pipeline and console, with a source made for
it. When the kit is through, the books must balance.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.e2e.server import TEST_TOKEN, TOKEN, Server, command, running


def arguments_for(server: Server) -> list[str]:
    """What `counterfoil conformance` needs to know of a server; the tokens go into files beside its configuration."""
    live, test = server.directory / "live.token", server.directory / "test.token"
    live.write_text(TOKEN)
    test.write_text(TEST_TOKEN)
    return ["conformance", server.url, "--token-file", str(live), "--test-token-file", str(test)]


def main() -> int:
    """Run the kit on a server of our own, with the options that were given; its exit status, or the audit's."""
    with tempfile.TemporaryDirectory() as directory, running(Server(Path(directory))) as server:
        kit = subprocess.run([*command(*arguments_for(server)), *sys.argv[1:]])
        server.settle_down()
        audit = subprocess.run([*command("audit", "--config", str(server.config))], stdout=subprocess.DEVNULL)
        return kit.returncode or audit.returncode


if __name__ == "__main__":
    sys.exit(main())
