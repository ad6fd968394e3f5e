import os
from collections.abc import Sequence

from zlayer_driver._fastpath.caches import BlobCache
from zlayer_driver.model import ImageFacts

def image_facts(ref: str, caches: Sequence[str | os.PathLike[str] | BlobCache]) -> ImageFacts: ...
