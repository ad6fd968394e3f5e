"""Programs of the node itself behind target ``delegate``."""

from __future__ import annotations

from zlayer_driver.backends import Entry
from zlayer_driver.model import OS, Target

ENTRY = Entry(OS.LINUX, Target.DELEGATE, "zlayer_driver_process.backend")
