"""Sphinx's settings."""

from zlayer_driver import __version__

project = "zlayer-driver"
version = release = __version__
extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = f"zlayer-driver {__version__}"
exclude_patterns = ["_build"]
suppress_warnings = ["misc.highlighting_failure"]  # HCL's interpolations are no tokens of its lexer
