"""The checker: sends rows with known content, writes down each answer, and judges what a destination holds.

    Content ─rows─▶ Load ─▶ Sender ──HTTP──▶ any server of this API ──▶ a destination
                     │         │                                            │ reading: an iterator of FoundRow
                     ▼         ▼ Answer                                     ▼
                  Journal ◀────┘ ─────────────────────────────────────▶ judge ──▶ Judgement

It needs nothing of the server's inside: it imports no other part of the house but the faulty disk, so that a fault of
the server can't be its own as well. How it is used:

    content = Content("canary0f3a", time_base_ms=now_ms)       # every row follows from this and its number
    journal = Journal()
    load = Load(content, journal, lambda: HttpSender(url, token))
    load.start()                                               # threads send until they are told to stop
    …                                                          # the server is killed, its disk fills up, …
    load.stop()
    left = load.finish(seconds=60)                             # repeats what has no answer, as the contract says
    judgement = judge(content, journal, read_delta(path))      # or read_postgres, read_postings
    assert judgement.is_clean, judgement.lines()

A test that wants single requests leaves `Load` out: `numbers = journal.take(n)`, `sender.send(content.rows(numbers))`,
`journal.note(numbers, answer.rows)`.

| module | what it holds |
|---|---|
| `content` | rows that follow from a run's name and a number, each value with the run's canary in it |
| `journal` | what was answered for each number, a byte a row; and, where asked for, on disk |
| `answers` | what an answer says of each row, read strictly by the contract |
| `sending` | a `Sender` over raw HTTP |
| `load` | clients at work: new rows, repeats on purpose, repeats of what failed |
| `reading` | the rows that a destination holds, whichever kind it is |
| `judging` | what became of each row: lost, twice, changed, never sent, answered neither way |
| `canaries` | files that hold a value of a row and must not |
| `server`, `faults`, `game` | a server of its own, what is done to its processes, and rounds of it under load |
| `powerloss`, `plug` | power cuts: simulated, and real ones in two steps |
| `disk` | how long a flush takes on a disk, and whether it is likely to be one |
| `trials`, `report` | what `counterfoil selftest` tries, and what it says |

Invariants:

- A number is noted as taken before its row is sent, and as acknowledged only after the answer has come whole.
- What was answered with success once stays acknowledged, whatever a later answer says.
- A row without an answer may have been taken or not: neither its presence nor its absence is a fault.
- Memory is bounded: a byte a row in the journal and another in the judge, and a pool of rows to repeat.
"""
