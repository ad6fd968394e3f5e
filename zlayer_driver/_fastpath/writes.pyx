# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Many small files at once, without Python's lock between their system calls; `_fastpath_py.writes` has the same in plain Python."""

from cpython.bytes cimport PyBytes_AsStringAndSize
from libc.errno cimport EINTR, errno
from libc.stdlib cimport free, malloc
from posix.fcntl cimport O_CLOEXEC, O_CREAT, O_EXCL, O_WRONLY
from posix.time cimport timespec
from posix.types cimport gid_t, mode_t, uid_t
from posix.unistd cimport close, write

from zlayer_driver._fastpath.files cimport O_NOFOLLOW


cdef extern from "<fcntl.h>" nogil:
    int openat(int at, const char* path, int flags, mode_t mode)


cdef extern from "<sys/stat.h>" nogil:
    int fchmod(int fd, mode_t mode)
    int futimens(int fd, const timespec* times)


cdef extern from "<unistd.h>" nogil:
    int fchown(int fd, uid_t owner, gid_t group)


cdef struct File:
    int folder
    char* name
    char* content
    Py_ssize_t size
    uid_t uid
    gid_t gid
    mode_t mode
    timespec[2] times


cdef bint filled(int fd, const char* content, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t put
    while size > 0:
        put = write(fd, content, <size_t>size)
        if put >= 0:
            content += put
            size -= put
        elif errno != EINTR:
            return False
    return True


cdef bint made(const File* file) noexcept nogil:
    """Owner before mode: changing it takes setuid bits away. Times last."""
    cdef bint good
    cdef int fd = openat(file.folder, file.name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    if fd < 0:
        return False
    good = (
        filled(fd, file.content, file.size)
        and fchown(fd, file.uid, file.gid) == 0
        and fchmod(fd, file.mode) == 0
        and futimens(fd, file.times) == 0
    )
    return close(fd) == 0 and good


cdef int described(File* file, tuple row) except -1:
    """The pointers are into objects of ``row``, and hold as long as it does."""
    cdef Py_ssize_t length
    cdef long long mtime_ns
    file.folder, name, content, file.uid, file.gid, file.mode, mtime_ns = row
    PyBytes_AsStringAndSize(name, &file.name, NULL)
    PyBytes_AsStringAndSize(content, &file.content, &length)
    file.size = length
    file.times[0].tv_sec = mtime_ns // 1_000_000_000
    file.times[0].tv_nsec = mtime_ns % 1_000_000_000
    file.times[1] = file.times[0]
    return 0


def write_files(list rows not None) -> int:
    """Makes new files in order, and stops at the first that fails, which may be there in part: how many were made.

    A row is (open directory, name, content, uid, gid, mode, mtime in ns).
    """
    cdef Py_ssize_t count = len(rows), number, done = 0
    cdef File* files = <File*>malloc(<size_t>(count + 1) * sizeof(File))
    if files == NULL:
        raise MemoryError
    try:
        for number in range(count):
            described(&files[number], rows[number])
        with nogil:
            while done < count and made(&files[done]):
                done += 1
    finally:
        free(files)
    return done
