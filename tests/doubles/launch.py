#!/usr/bin/python3 -IS
"""Becomes the double whose name it has. A module is compiled once, and a script at each of its starts."""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.realpath(__file__).removesuffix("/tests/doubles/launch.py"))
NAME = sys.argv[0].rpartition("/")[2].removesuffix(".exe")
__import__(f"tests.doubles.{NAME.replace('-', '_')}", fromlist=["main"]).main()
