"""The compiled hot path. Import `zlayer_driver.fastpath` instead."""

from zlayer_driver._fastpath.caches import BlobCache
from zlayer_driver._fastpath.facts import image_facts
from zlayer_driver._fastpath.placement import JobLines, choose_many, line_count
from zlayer_driver._fastpath.references import cache_keys, canonical, canonical_many, parse, sanitize, sanitize_many
from zlayer_driver._fastpath.writes import write_members

__all__ = [
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
