"""What a path looks like, and small files read whole."""

from libc.errno cimport EINTR, ENOENT, ENOTDIR, errno
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp
from posix.fcntl cimport O_CLOEXEC, O_NONBLOCK, O_RDONLY, open
from posix.stat cimport S_ISDIR, S_ISLNK, S_ISREG, fstat, lstat, stat, struct_stat
from posix.unistd cimport close, read


cdef extern from "<fcntl.h>" nogil:
    const int O_NOFOLLOW


cdef extern from * nogil:
    """
    #include <sys/stat.h>
    /* Equal stamps: the same file, not written to in between. */
    typedef struct { unsigned long long device, inode; long long size, written_s, written_ns; } Stamp;
    static Stamp stamp_of(const struct stat *s) {
        return (Stamp){s->st_dev, s->st_ino, s->st_size, s->st_mtim.tv_sec, s->st_mtim.tv_nsec};
    }
    """
    ctypedef struct Stamp:
        unsigned long long device
        unsigned long long inode
        long long size
        long long written_s
        long long written_ns
    Stamp stamp_of(const struct_stat* found)


cdef inline bint same_stamp(const Stamp* one, const Stamp* other) noexcept nogil:
    return memcmp(one, other, sizeof(Stamp)) == 0


cdef struct Buffer:
    char* at  # malloc'ed; NULL: nothing was read
    Py_ssize_t size


cdef inline int look(const char* path, Stamp* stamp) noexcept nogil:
    """1 if the path is there, 0 if not, -1 (errno) if that cannot be told."""
    cdef struct_stat found
    if stat(path, &found) == 0:
        stamp[0] = stamp_of(&found)
        return 1
    return 0 if errno == ENOENT or errno == ENOTDIR else -1


cdef inline bint is_link(const char* path) noexcept nogil:
    cdef struct_stat found
    return lstat(path, &found) == 0 and S_ISLNK(found.st_mode)


cdef inline bint is_folder(const char* path) noexcept nogil:
    cdef struct_stat found
    return stat(path, &found) == 0 and S_ISDIR(found.st_mode)


cdef inline Buffer read_file(const char* path, Py_ssize_t limit) noexcept nogil:
    """A regular file of at most ``limit`` bytes; links and devices are not followed. The caller frees the buffer."""
    cdef Buffer buffer = Buffer(NULL, 0)
    cdef struct_stat found
    cdef Py_ssize_t got
    cdef int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
    if fd < 0:
        return buffer
    if fstat(fd, &found) == 0 and S_ISREG(found.st_mode) and found.st_size <= limit:
        buffer.at = <char*>malloc(<size_t>found.st_size + 1)
        while buffer.at != NULL and buffer.size < found.st_size:
            got = read(fd, buffer.at + buffer.size, <size_t>(found.st_size - buffer.size))
            if got < 0 and errno != EINTR:
                free(buffer.at)
                buffer.at = NULL
            elif got == 0:
                break
            elif got > 0:
                buffer.size += got
    close(fd)
    return buffer
