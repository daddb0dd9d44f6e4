"""Every benchmark, or those that are named: `python -m bench [gateway|crowd|contract …]`.

Each is a module of this package with a `run()` that prints its figures. A figure means something beside its floor and
in the same run only: machines differ, and so does one machine from hour to hour.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

ORDER = ("gateway", "crowd", "contract", "worst", "queue", "settle", "delta", "deliver", "backfill")


def benches() -> list[str]:
    """The names of the benchmarks there are."""
    there = {path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")}
    there -= {"server"}
    return [name for name in ORDER if name in there] + sorted(there - set(ORDER))


def main(names: list[str]) -> int:
    known = benches()
    for name in names:
        if name not in known:
            print(f"bench: no benchmark is named {name}; there are {', '.join(known)}", file=sys.stderr)
            return 2
    for name in names or known:
        print(f"== {name}", flush=True)
        importlib.import_module(f"bench.{name}").run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
