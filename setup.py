"""Builds the one compiled module, ``zlayer_driver._fastpath``; everything else is in pyproject.toml.

``ZLAYER_CYTHON_TRACE=1`` builds it for line coverage, ``ZLAYER_SANITIZE=1`` with the address and undefined-behaviour sanitizers.
"""

import os
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

TRACE = os.environ.get("ZLAYER_CYTHON_TRACE") == "1"
SANITIZE = os.environ.get("ZLAYER_SANITIZE") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]

extension = Extension(
    "zlayer_driver._fastpath",
    ["zlayer_driver/_fastpath.pyx"],
    depends=[str(path) for path in sorted(Path("zlayer_driver/_native").glob("*.[ph]*"))],
    include_dirs=["."],
    libraries=["sqlite3"],
    define_macros=[("CYTHON_TRACE", "1")] if TRACE else [],
    extra_compile_args=["-O3", "-fno-strict-aliasing", *(SANITIZERS if SANITIZE else [])],
    extra_link_args=SANITIZERS if SANITIZE else [],
)

setup(ext_modules=cythonize([extension], language_level=3, compiler_directives={"linetrace": TRACE}))
