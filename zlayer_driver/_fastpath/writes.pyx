# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Small files of a layer's archive, from its bytes to the disk without Python's lock; `_fastpath_py.writes` is the same in plain Python."""

from libc.errno cimport EINTR, errno
from libc.string cimport memchr, memcmp, memcpy
from posix.fcntl cimport O_CLOEXEC, O_CREAT, O_EXCL, O_WRONLY
from posix.time cimport timespec
from posix.types cimport gid_t, mode_t, uid_t
from posix.unistd cimport close, write

from zlayer_driver._fastpath.files cimport O_NOFOLLOW


cdef extern from "<fcntl.h>" nogil:
    int openat(int at, const char* path, int flags, mode_t mode)


cdef extern from "<string.h>" nogil:
    size_t strnlen(const char* text, size_t most)


cdef extern from "<sys/stat.h>" nogil:
    int fchmod(int fd, mode_t mode)
    int futimens(int fd, const timespec* times)


cdef extern from "<unistd.h>" nogil:
    int fchown(int fd, uid_t owner, gid_t group)


cdef enum:
    BLOCK = 512
    NAME = 100


cdef struct File:
    char[NAME + 1] name
    const char* content
    Py_ssize_t size
    uid_t uid
    gid_t gid
    mode_t mode
    timespec[2] times


cdef long long octal(const char* field, int width) noexcept nogil:
    """Digits, then at least one blank or NUL to the field's end; -1 for anything else."""
    cdef long long value = 0
    cdef int at = 0
    while at < width and c'0' <= field[at] <= c'7':
        value = value * 8 + field[at] - c'0'
        at += 1
    if at == 0 or at == width:
        return -1
    for at in range(at, width):
        if field[at] != c' ' and field[at] != 0:
            return -1
    return value


cdef bint whole(const char* block) noexcept nogil:
    """Whether a header's checksum is right; its own field counts as blanks."""
    cdef long long total = 8 * c' '
    cdef int at
    for at in range(BLOCK):
        if not 148 <= at < 156:
            total += <unsigned char>block[at]
    return octal(block + 148, 8) == total


cdef long long decimal(const char** at, const char* end, int most) noexcept nogil:
    """One to ``most`` digits, which ``at`` is moved beyond; -1 if there are none or more."""
    cdef long long value = 0
    cdef int count = 0
    while at[0] < end and c'0' <= at[0][0] <= c'9' and count <= most:
        value = value * 10 + at[0][0] - c'0'
        at[0] += 1
        count += 1
    return value if 0 < count <= most else -1


cdef bint timed(timespec* time, const char* at, const char* end) noexcept nogil:
    """Reads seconds, which file systems keep as far as ten digits go, with an optional fraction, to nine."""
    cdef const char* point
    time.tv_sec = decimal(&at, end, 10)
    time.tv_nsec = 0
    if time.tv_sec >= 0 and at < end and at[0] == c'.':
        at += 1
        point = at
        time.tv_nsec = decimal(&at, end, 9)
        if time.tv_nsec < 0:
            return False
        for _ in range(9 - (at - point)):
            time.tv_nsec *= 10
    return time.tv_sec >= 0 and at == end


cdef bint only_times(const char* at, const char* end, timespec* changed) noexcept nogil:
    """Whether pax records tell nothing but times, of which the last change is kept."""
    cdef const char* record
    cdef const char* last
    cdef long long length
    while at < end:
        record = at
        length = decimal(&at, end, 3)
        if not 9 <= length <= end - record:
            return False
        last = record + length - 1
        if last[0] != c'\n' or last - at < 7 or at[0] != c' ':
            return False
        if memcmp(at + 1, b"mtime=", 6) == 0:
            if not timed(changed, at + 7, last):
                return False
        elif memcmp(at + 1, b"atime=", 6) != 0 and memcmp(at + 1, b"ctime=", 6) != 0:
            return False
        at = last + 1
    return True


cdef bint named(File* file, const char* block, const char* prefix, Py_ssize_t above) noexcept nogil:
    """Takes the last component of a name that is ``prefix`` and nothing else before it."""
    cdef Py_ssize_t length = <Py_ssize_t>strnlen(block, NAME) - above
    cdef const char* last = block + above
    if length <= 0 or memcmp(block, prefix, <size_t>above) != 0 or memchr(last, c'/', <size_t>length) != NULL:
        return False
    memcpy(file.name, last, <size_t>length)
    file.name[length] = 0
    if memcmp(block + 257, b"ustar\0", 6) == 0 and block[345] != 0:
        return False
    return not (
        memcmp(file.name, b".\0", 2) == 0 or memcmp(file.name, b"..\0", 3) == 0 or (length >= 4 and memcmp(file.name, b".wh.", 4) == 0)
    )


cdef Py_ssize_t described(File* file, const char* at, Py_ssize_t left, const char* prefix, Py_ssize_t above) noexcept nogil:
    """The bytes that a plain member takes, its padding included; 0 if it is none, or is not here in whole."""
    cdef const char* block = at
    cdef long long told, mode, uid, gid
    file.times[0].tv_sec = -1
    if left >= 3 * BLOCK and block[156] == c'x':
        told = octal(block + 124, 12)
        if not whole(block) or not 0 < told <= BLOCK or not only_times(block + BLOCK, block + BLOCK + told, &file.times[0]):
            return 0
        block += 2 * BLOCK
        left -= 2 * BLOCK
    if left < BLOCK or (block[156] != c'0' and block[156] != 0) or not whole(block) or not named(file, block, prefix, above):
        return 0
    if file.times[0].tv_sec < 0:
        file.times[0].tv_sec = octal(block + 136, 12)
        file.times[0].tv_nsec = 0
    mode, uid, gid, file.size = octal(block + 100, 8), octal(block + 108, 8), octal(block + 116, 8), octal(block + 124, 12)
    if mode < 0 or uid < 0 or gid < 0 or not 0 <= file.size <= left - BLOCK or file.times[0].tv_sec < 0:
        return 0
    file.mode, file.uid, file.gid = <mode_t>(mode & 0o7777), <uid_t>uid, <gid_t>gid
    file.times[1] = file.times[0]
    file.content = block + BLOCK
    told = BLOCK + (file.size + BLOCK - 1) // BLOCK * BLOCK
    return block - at + told if told <= left else 0


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


cdef bint made(int folder, const File* file) noexcept nogil:
    """Owner before mode: changing it takes setuid bits away. Times last."""
    cdef bint good
    cdef int fd = openat(folder, file.name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0o600)
    if fd < 0:
        return False
    good = (
        filled(fd, file.content, file.size)
        and fchown(fd, file.uid, file.gid) == 0
        and fchmod(fd, file.mode) == 0
        and futimens(fd, file.times) == 0
    )
    return close(fd) == 0 and good


def write_members(const unsigned char[::1] archive not None, int folder, bytes prefix not None, Py_ssize_t largest, Py_ssize_t most):
    """Makes files of an archive's first members in an open directory, as far as they are plain: how many, and the bytes that they take.

    Plain members are regular files of at most ``largest`` bytes, named ``prefix`` and one component, with plain numbers in a header whose
    checksum fits, and nothing but times in a pax header. What follows the last of them, or ``most`` of them, is left: other members,
    damage, the archive's end, and a file that cannot be made, which may be there in part.
    """
    cdef Py_ssize_t taken = 0, size, left = archive.shape[0], above = len(prefix), count = 0
    cdef const char* start = <const char*>&archive[0] if left else NULL
    cdef const char* folders = prefix
    cdef File file
    if above > NAME:
        return 0, 0
    with nogil:
        while count < most:
            size = described(&file, start + taken, left - taken, folders, above)
            if size == 0 or file.size > largest or not made(folder, &file):
                break
            taken += size
            count += 1
    return count, taken
