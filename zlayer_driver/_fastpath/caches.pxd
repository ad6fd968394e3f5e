"""A handle on a blob cache; see `caches.pyx`."""

from zlayer_driver._fastpath.files cimport Buffer
from zlayer_driver._fastpath.followed cimport Followed
from zlayer_driver._fastpath.grammar cimport Slice
from zlayer_driver._fastpath.redb_tree cimport Redb
from zlayer_driver._fastpath.sqlite cimport Sqlite


cdef enum Task:
    OPEN
    GET
    GET_MANY
    KEYS
    FACTS
    FACTS_MANY


cdef class BlobCache:
    cdef Followed _files
    cdef bytes store  # the folder in which the cache and the images built beside it lie
    cdef bytes _spill_dir
    cdef Sqlite _sqlite
    cdef Redb _redb
    cdef dict _memo  # reference -> (facts, unreadable), as of the last look
    cdef dict _learnt  # likewise, not yet proven
    cdef bint _spilled_manifest, _closed
    cdef object run(self, Task task, object argument)
    cdef tuple facts_of(self, str ref)
    cdef list _in_batches(self, Task task, list asked)
    cdef object _read(self, Task task, object argument)
    cdef bint _may_keep_snapshot(self) noexcept
    cdef tuple _told(self, str ref)
    cdef int _remember(self) except -1
    cdef void _end(self) noexcept
    cdef void _disown(self) noexcept
    cdef void _drop(self) noexcept
    cdef bint _is_same(self) except -1
    cdef bint _held(self) except -1
    cdef int _open(self) except -1
    cdef int _connect(self, bytes path, str options) except -1
    cdef object _failed(self)
    cdef bint _row(self, int which, Slice key, Slice* row) except -1
    cdef Buffer _spilled(self, Slice key)
    cdef bint _owns_spill(self, Slice key, Py_ssize_t size) except -1
    cdef bint _blob(self, int which, Slice key, Slice* blob, Buffer* spill) except -1
    cdef object _get(self, str key)
    cdef list _keys(self)
    cdef tuple _probe(self, str ref)
    cdef tuple _config(self, Slice digest, str marker)
