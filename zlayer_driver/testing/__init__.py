"""The contract suite, for whoever writes a backend: what a task driver may rely on, as test classes.

A backend's own tests give a `Subject` (how its tasks are made, and what is left of them) and one class::

    class TestMine(suite.Verbs, suite.SignalCases):
        @pytest.fixture
        def subject(self, tmp_path: Path) -> Subject:
            return MySubject(tmp_path)

Needs pytest and pytest-asyncio, with ``asyncio_mode = "auto"``.
"""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in ("cases", "exec_cases", "suite")))  # they are not named as tests are
