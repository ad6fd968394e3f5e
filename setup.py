"""Builds the one compiled module, ``zlayer_driver._fastpath``; everything else is in pyproject.toml."""

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

TRACE = os.environ.get("ZLAYER_CYTHON_TRACE") == "1"

extension = Extension(
    "zlayer_driver._fastpath",
    ["zlayer_driver/_fastpath.pyx"],
    libraries=["sqlite3"],
    define_macros=[("CYTHON_TRACE", "1")] if TRACE else [],
    extra_compile_args=["-O2", "-fno-strict-aliasing"],
)

setup(ext_modules=cythonize([extension], language_level=3, compiler_directives={"linetrace": TRACE}))
