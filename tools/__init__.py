"""What the project's own commands and tests need beside the package: a lab with real parts, and the demonstration."""
