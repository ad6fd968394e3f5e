"""Image references, cache keys, local image facts and many small files: the compiled implementation, or its plain Python twin where it is not built."""

from __future__ import annotations

try:
    from zlayer_driver._fastpath import (
        BlobCache,
        JobLines,
        cache_keys,
        canonical,
        canonical_many,
        choose_many,
        image_facts,
        line_count,
        parse,
        sanitize,
        sanitize_many,
        write_members,
    )

    IMPLEMENTATION = "compiled"
except ImportError:
    from zlayer_driver._fastpath_py import (  # type: ignore[assignment]  # same interface, other classes
        BlobCache,
        JobLines,
        cache_keys,
        canonical,
        canonical_many,
        choose_many,
        image_facts,
        line_count,
        parse,
        sanitize,
        sanitize_many,
        write_members,
    )

    IMPLEMENTATION = "python"

__all__ = [
    "IMPLEMENTATION",
    "BlobCache",
    "JobLines",
    "cache_keys",
    "canonical",
    "canonical_many",
    "choose_many",
    "image_facts",
    "line_count",
    "parse",
    "sanitize",
    "sanitize_many",
    "write_members",
]
