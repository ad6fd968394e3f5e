# cython: language_level=3, auto_pickle=False, autotestdict=False
"""What local stores say of an image, compiled; `_fastpath_py.facts` has the same function and answers in plain Python."""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdlib cimport free

from zlayer_driver._fastpath.caches cimport BlobCache
from zlayer_driver._fastpath.documents cimport answer_of, os_of
from zlayer_driver._fastpath.files cimport Buffer, read_file
from zlayer_driver._fastpath.followed cimport folder_of
from zlayer_driver._fastpath.grammar cimport Slice
from zlayer_driver._fastpath.json cimport MAX_DOCUMENT_BYTES, OS_NAME, SIDECAR_SCHEMA, Answers, read_document
from zlayer_driver._fastpath.text cimport directory_name, encoded

import os

from zlayer_driver.errors import CacheBusy, CacheError


cdef bytes store_of(cache):
    """The folder in which a cache and the images built beside it lie, with its slash; empty for the current one."""
    cdef bytes folder
    if isinstance(cache, BlobCache):
        folder = (<BlobCache>cache).store
    else:
        folder = folder_of(os.fsencode(cache).rstrip(b"/"))
    return folder + b"/" if folder else folder


cdef object sidecar_os(str ref, caches):
    cdef bytes name = encoded(b"", directory_name(ref))
    cdef bytes path
    cdef Buffer raw
    cdef Answers answers
    if name is None or name in (b"", b".", b".."):
        return None
    name += b"/metadata.json"
    for cache in caches:
        path = store_of(cache) + name
        if b"\0" in path:
            continue
        raw = read_file(PyBytes_AS_STRING(path), MAX_DOCUMENT_BYTES)
        if raw.at == NULL:
            continue
        try:
            if read_document(Slice(raw.at, raw.size), &SIDECAR_SCHEMA, &answers):
                found = os_of(answers.found[OS_NAME])
                if found is not None:
                    return found
        finally:
            free(raw.at)
    return None


cdef tuple ask(cache, str ref):
    if isinstance(cache, BlobCache):
        return (<BlobCache>cache).facts_of(ref)
    with BlobCache(cache) as opened:
        return (<BlobCache>opened).facts_of(ref)


def image_facts(str ref not None, caches):
    """What local stores say of an image: sidecars first (OS only), then the caches in order, each fact from the first that has it.

    A cache that cannot be read is passed over. `CacheBusy` only where no OS was found and a busy cache might have it.
    """
    cdef bint os_open, isolation_open = True
    os_ = sidecar_os(ref, caches)
    marker = isolation = busy = None
    os_open = os_ is None
    for cache in caches:
        try:
            found, unreadable = ask(cache, ref)
        except CacheError as error:
            busy = error if isinstance(error, CacheBusy) else busy
            continue
        if marker is None:
            marker = found.marker
        if os_open:
            os_ = found.os
            os_open = os_ is None and not unreadable
        if isolation_open:
            isolation = found.isolation
            isolation_open = isolation is None and not unreadable
        if marker is not None and not os_open and not isolation_open:
            break
    if os_ is None and os_open and busy is not None:
        raise busy
    return answer_of(os_, marker, isolation, False)[0]
