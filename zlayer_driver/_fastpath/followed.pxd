"""A file that others replace and write to; see `followed.pyx`."""

from zlayer_driver._fastpath.sqlite cimport State


cdef enum Change:
    NO_CHANGE
    OTHER_CONTENT
    OTHER_FILE  # or one that is opened in another way


cdef bytes path_bytes(str path)
cdef bytes folder_of(bytes file)


cdef class Followed:
    cdef readonly str path
    cdef bytes file, _folder, _wal, _shm, _journal
    cdef State state
    cdef bint watching
    cdef bint alone  # nothing beside it matters
    cdef bint quiet  # at the last look nothing had been heard since the one before
    cdef unsigned long _events, _forks
    cdef long long _looked_ms, _located_ms
    cdef int _looks
    cdef bint _ended
    cdef bint is_inherited(self) noexcept
    cdef Change look(self) except *
    cdef bint held(self) except -1
    cdef void end(self) noexcept
    cdef int _locate(self) except -1
    cdef int _observe(self, State* state) except -1
