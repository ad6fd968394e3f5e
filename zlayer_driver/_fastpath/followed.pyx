# cython: language_level=3, auto_pickle=False, autotestdict=False
"""A file that others replace and write to, and what SQLite keeps beside it: whether they are as they were at the last look."""

from cython cimport final
from cpython.bytes cimport PyBytes_AS_STRING
from libc.errno cimport errno
from libc.string cimport strerror

from zlayer_driver._fastpath.files cimport Stamp, is_link, look as read_stamp, same_stamp
from zlayer_driver._fastpath.sqlite cimport State, observe, same_file, same_state, unguarded

import os

from zlayer_driver.errors import CacheError


cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object text)


cdef extern from "zlayer_driver/_fastpath/watch.h" nogil:
    unsigned long watch_forks
    void watch_handle_opened()
    void watch_handle_closed()
    bint watch_folder(const char* folder)
    unsigned long watch_count()
    long long watch_clock_ms()


cdef int WATCH_AFTER_LOOKS = 8  # who asks once or twice does not pay for a watch, whose end takes the kernel milliseconds
cdef long long LOOK_EVERY_MS = 250  # also when nothing was heard: a link or folder further up may have changed


cdef bytes path_bytes(str path):
    cdef bytes raw = PyUnicode_EncodeFSDefault(path)
    if b"\0" in raw:
        raise CacheError(path, "its name has a NUL")
    return raw


cdef bytes folder_of(bytes file):
    """What stands before the last slash, as `os.path.dirname` has it."""
    cdef bytes folder = file[:file.rfind(b"/") + 1]
    return folder.rstrip(b"/") or folder


@final
cdef class Followed:

    def __cinit__(self, str path):
        watch_handle_opened()
        self.path = path
        self._forks = watch_forks

    def __dealloc__(self):
        self.end()

    cdef void end(self) noexcept:
        if not self._ended:
            self._ended = True
            watch_handle_closed()

    cdef bint is_inherited(self) noexcept:
        """Whether this process was forked off the one that asked last."""
        cdef bint found = self._forks != watch_forks
        self._forks = watch_forks
        return found

    cdef Change look(self) except *:
        """Looks at the files, unless there was nothing to hear, and tells what is new since the last look."""
        cdef State before = self.state
        cdef Stamp now
        cdef long long now_ms = watch_clock_ms()
        self.quiet = self.watching and watch_count() == self._events
        if self.quiet and now_ms - self._looked_ms < LOOK_EVERY_MS:
            return NO_CHANGE
        if self.file is None or now_ms - self._located_ms >= LOOK_EVERY_MS:
            self._locate()
            self._located_ms = now_ms
        self._looks += 1
        self.watching = self._looks > WATCH_AFTER_LOOKS and watch_folder(PyBytes_AS_STRING(self._folder))
        self._events = watch_count() if self.watching else 0
        self._looked_ms = now_ms
        if self.alone and read_stamp(PyBytes_AS_STRING(self.file), &now) > 0 and same_stamp(&now, &before.database):
            return NO_CHANGE
        self._observe(&self.state)
        if same_state(&before, &self.state) and (self.quiet or unguarded(self.state.mode)):
            return NO_CHANGE
        if (
            unguarded(self.state.mode) or before.mode != self.state.mode
            or not same_file(&before.database, &self.state.database) or not same_file(&before.wal, &self.state.wal)
        ):
            return OTHER_FILE
        return OTHER_CONTENT

    cdef bint held(self) except -1:
        """Whether all that was read since the last look was one committed state."""
        cdef State now
        if not unguarded(self.state.mode) or (self.watching and watch_count() == self._events):
            return True
        self._observe(&now)
        return same_state(&now, &self.state)

    cdef int _locate(self) except -1:
        """Where the database lies now; SQLite keeps its logs beside the file itself, not beside a link to it."""
        cdef bytes file = path_bytes(self.path)
        if not file.startswith(b"/") or is_link(PyBytes_AS_STRING(file)):
            file = os.path.realpath(file)
        if file != self.file:
            self.file, self._folder = file, folder_of(file)
            self._wal, self._shm, self._journal = file + b"-wal", file + b"-shm", file + b"-journal"
        return 0

    cdef int _observe(self, State* state) except -1:
        cdef int there = observe(
            PyBytes_AS_STRING(self.file), PyBytes_AS_STRING(self._wal), PyBytes_AS_STRING(self._shm), PyBytes_AS_STRING(self._journal),
            state,
        )
        if there <= 0:
            raise CacheError(self.path, "no such file" if there == 0 else strerror(errno).decode())
        return 0
