"""What holds of all tests."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SETTINGS = ("COUNTERFOIL_", "AWS_", "PG", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
LOOKS = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "PY_COLORS", "GITHUB_ACTIONS")
"""How the names of variables begin that would settle for whoever runs the tests what a test means to settle."""

for name in [name for name in os.environ if name.upper().startswith(SETTINGS + LOOKS)]:
    del os.environ[name]
os.umask(0o022)

# How long an example takes says how busy the machine is, and nothing of the code. The examples follow from the tests,
# so that a change passes or not by what it changes; `make search` looks for new ones.
settings.register_profile("search", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("search"), derandomize=True)
settings.load_profile("repeatable")
