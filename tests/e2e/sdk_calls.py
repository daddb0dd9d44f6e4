"""Calls of the official SDK, made in a process of their own so that any version of it can be called.

Each line of standard input: JSON `{"base_url", "calls": [[name, arguments], …]}`, a name being `track`, `batch` or
`identify`. To each a line of standard output: for each call the parsed answer `{"answer": {…}}`, or what the SDK raised
`{"raised": class, "status": …, "body": …}`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import ours_privacy


def main() -> None:
    print(json.dumps(ours_privacy.__version__), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        with ours_privacy.OursPrivacy(
            base_url=asked["base_url"],
            max_retries=0,
            timeout=30.0,
            # The SDK's own strict mode: an answer that is not of the documented shape raises.
            _strict_response_validation=True,
        ) as client:
            methods: dict[str, Any] = {
                "track": client.track.event,
                "batch": client.batch.create,
                "identify": client.visitor.upsert,
            }
            print(json.dumps([call(methods[name], arguments) for name, arguments in asked["calls"]]), flush=True)


def call(method: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"answer": method(**arguments).to_dict()}
    except ours_privacy.APIStatusError as raised:
        return {"raised": type(raised).__name__, "status": raised.status_code, "body": raised.body}
    except ours_privacy.APIError as raised:
        return {"raised": type(raised).__name__}


if __name__ == "__main__":
    main()
