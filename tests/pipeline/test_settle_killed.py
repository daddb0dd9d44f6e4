"""A process that settles is killed, again and again, and the books balance."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from uuid import UUID

from counterfoil.contract.facts import key_hash, key_prefix
from counterfoil.files import RealFiles
from counterfoil.ledger import Ledger, SourceCounts
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.audit import audit
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.queue.reader import QueueReader
from tests.pipeline.test_settle_queue import draft, write

KILLS = 4

SETTLE = """
import sys
from pathlib import Path
from uuid import UUID
from counterfoil.files import RealFiles
from counterfoil.ledger import Ledger
from counterfoil.ledger.settings import LedgerSettings
from counterfoil.pipeline.settings import PipelineSettings
from counterfoil.pipeline.settle import Settler
from counterfoil.queue.reader import QueueReader

data = Path(sys.argv[1])
ledger = Ledger.open(data / "ledger", LedgerSettings(), UUID(int=7))
settler = Settler(QueueReader(data / "queue", RealFiles(), None), ledger, PipelineSettings(group_rows=5), lambda: 1)
while settler.step():
    print(ledger.last_group(), flush=True)
"""


def test_killed_at_any_point_it_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """SIGKILL between reading and recording: every group that was told is there, every row has one verdict."""
    drafts = [draft([f"{number}-{row}" for row in range(5)]) for number in range(80)]
    write(tmp_path / "queue", [*drafts, *drafts])
    chance = random.Random(7)
    told = 0
    for _ in range(KILLS):
        child = subprocess.Popen([sys.executable, "-c", SETTLE, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(chance.randrange(1, 20)):
            told = max(told, int(child.stdout.readline() or 0))
        child.kill()
        rest = child.communicate()[0].split()
        told = max([told, *map(int, rest)])
    ledger = Ledger.open(tmp_path / "ledger", LedgerSettings(), UUID(int=7))
    assert ledger.last_group() >= told
    queue = QueueReader(tmp_path / "queue", RealFiles(), None)
    settler = Settler(queue, ledger, PipelineSettings(), lambda: 1)
    while settler.step():
        pass
    assert ledger.books().sources == (SourceCounts("web", accepted=800, new=400, duplicate=400),)
    assert audit(ledger, queue).is_balanced
    for number in range(80):
        rows = ledger.lookup(key_hash(key_prefix("web"), f"{number}-3"))
        assert len({row.position for row in rows}) == len(rows) == 2
    ledger.close()
