"""The suite's modules are not named as tests are; their assertions are to tell as much."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("tests.contract.cases", "tests.contract.exec_cases", "tests.contract.suite")
