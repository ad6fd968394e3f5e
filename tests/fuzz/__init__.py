"""Fuzzing of the hot path: both twins must give the same answer to any bytes, and neither may crash, hang or eat memory.

``python -m tests.fuzz TARGET --seconds 600`` runs one target, guided by coverage where atheris is installed (``tools/fuzz`` sees to that), else by
blind mutation; under either ``tools/asan`` or ``tools/fuzz`` memory errors end the run. The bounded pass in the normal tests is `test_fuzz`.
"""
