"""Lines of jobs read in place, and answers to what was asked before, without an object per line.

A line is *plain* if it is a JSON object whose keys are without escapes and each there once, and whose id, image, runtime, isolation label
and platform are printable ASCII without escapes. Plain lines that agree in runtime, label and platform, and whose images have the same
facts, are of one kind: they have the same answer but for the id, the line's number and the image. So the first is asked about, and what is
told is kept as text with holes; what is known of images is kept beside it.
"""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_Resize
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memset

from zlayer_driver._fastpath.kinds cimport (
    ARCH, FACTS, ID_HOLE, IMAGE_HOLE, LABEL, LINE_HOLE, MAX_KEY_BYTES, RUNTIME, SYSTEM, Kept, Kind, Memo, recall, write_key,
)
from zlayer_driver._fastpath.scalars cimport Reader, read_text, skip_scalar, skip_space, take, take_word
from zlayer_driver._fastpath.grammar cimport Slice, cut, equals, put


cdef extern from *:
    """
    /* Bytes of a plain text: printable ASCII but the quote and the backslash. */
    static inline int is_printable(unsigned char byte) {
        return byte >= 0x20 && byte < 0x7F && byte != '"' && byte != '\\\\';
    }
    """
    bint is_printable(unsigned char byte) nogil


cdef enum:
    MAX_ID_BYTES = 512  # a longer one is refused
    MAX_IMAGE_BYTES = 512
    MAX_KEYS = 32  # of one object
    MAX_NESTING = 32
    MAX_COUNTS = 64


cdef struct Job:  # a text that is absent is empty
    Slice id
    Slice image
    Kind kind


cdef enum Where:
    IN_JOB
    IN_LABELS
    IN_PLATFORM
    ELSEWHERE


cdef struct Pass:  # one way through a chunk of lines; `missed` is the line that ended it, and `job` is that line's if it is plain
    const char* at
    const char* end
    long long line
    Slice missed
    Job job
    bint is_plain
    Py_buffer out  # of a bytearray, whose first `size` bytes are answers
    Py_ssize_t size
    long long counts[MAX_COUNTS]


cdef inline bint read_plain(Reader* r, Slice* text) noexcept nogil:
    """Consumes a plain text and the space after it."""
    cdef const char* start
    if r.at == r.end or r.at[0] != c"\"":
        return False
    r.at += 1
    start = r.at
    while r.at < r.end and is_printable(<unsigned char>r.at[0]):
        r.at += 1
    if r.at == r.end or r.at[0] != c"\"":
        return False
    text[0] = cut(start, r.at)
    r.at += 1
    skip_space(r)
    return True


cdef inline bint skip_once(Reader* r, Job* job) noexcept nogil:
    """Consumes any value in which no object has a key twice."""
    if r.at == r.end:
        return False
    if r.at[0] == c"{":
        return read_members(r, job, ELSEWHERE)
    if r.at[0] == c"[":
        return skip_items(r, job)
    return skip_scalar(r)


cdef inline bint skip_items(Reader* r, Job* job) noexcept nogil:
    r.depth += 1
    if r.depth > MAX_NESTING or not take(r, c"["):
        return False
    if not take(r, c"]"):
        while True:
            if not skip_once(r, job):
                return False
            if take(r, c"]"):
                break
            if not take(r, c","):
                return False
    r.depth -= 1
    return True


cdef inline bint read_of_job(Reader* r, Job* job, Slice key) noexcept nogil:
    if equals(key, "id", 2):
        return read_plain(r, &job.id)
    if equals(key, "image", 5):
        return read_plain(r, &job.image)
    if equals(key, "runtime", 7):
        return take_word(r, "null", 4) or (read_plain(r, &job.kind.said[RUNTIME]) and job.kind.said[RUNTIME].size > 0)
    if equals(key, "labels", 6):
        return take_word(r, "null", 4) or read_members(r, job, IN_LABELS)
    if equals(key, "platform", 8):
        return take_word(r, "null", 4) or read_members(r, job, IN_PLATFORM)
    return skip_once(r, job)


cdef inline bint read_of_platform(Reader* r, Job* job, Slice key) noexcept nogil:
    if equals(key, "os", 2):
        return take_word(r, "null", 4) or (read_plain(r, &job.kind.said[SYSTEM]) and job.kind.said[SYSTEM].size > 0)
    return equals(key, "arch", 4) and (take_word(r, "null", 4) or read_plain(r, &job.kind.said[ARCH]))


cdef inline bint read_of_labels(Reader* r, Job* job, Slice key) noexcept nogil:
    cdef Slice ignored
    if take_word(r, "null", 4):
        return True
    if equals(key, "com.zlayer.isolation", 20):
        return read_plain(r, &job.kind.said[LABEL])
    return read_text(r, &ignored)


cdef inline bint is_repeated(Slice key, const Slice* keys, int count) noexcept nogil:
    cdef int i
    for i in range(count):
        if keys[i].size == key.size and memcmp(keys[i].at, key.at, <size_t>key.size) == 0:
            return True
    return False


cdef inline bint read_members(Reader* r, Job* job, Where where) noexcept nogil:
    """Consumes an object with at most `MAX_KEYS` keys, and the space after it."""
    cdef Slice keys[MAX_KEYS]
    cdef int count = 0
    cdef bint good
    r.depth += 1
    if r.depth > MAX_NESTING or not take(r, c"{"):
        return False
    if not take(r, c"}"):
        while True:
            if count == MAX_KEYS or not read_plain(r, &keys[count]) or not take(r, c":") or is_repeated(keys[count], keys, count):
                return False
            if where == IN_JOB:
                good = read_of_job(r, job, keys[count])
            elif where == IN_LABELS:
                good = read_of_labels(r, job, keys[count])
            elif where == IN_PLATFORM:
                good = read_of_platform(r, job, keys[count])
            else:
                good = skip_once(r, job)
            if not good:
                return False
            count += 1
            if take(r, c"}"):
                break
            if not take(r, c","):
                return False
    r.depth -= 1
    return True


cdef inline bint read_job(Slice line, Job* job) noexcept nogil:
    """Whether ``line`` is plain. An id or image with an apostrophe is not: messages quote it another way."""
    cdef Reader r = Reader(line.at, line.at + line.size, 0, NULL)
    memset(job, 0, sizeof(Job))
    skip_space(&r)
    return (
        read_members(&r, job, IN_JOB) and r.at == r.end and 0 < job.id.size <= MAX_ID_BYTES and 0 < job.image.size <= MAX_IMAGE_BYTES
        and memchr(job.id.at, c"'", <size_t>job.id.size) == NULL and memchr(job.image.at, c"'", <size_t>job.image.size) == NULL
    )


cdef inline int grow(Pass* lines, Py_ssize_t room) except -1 with gil:
    cdef object out = <object>lines.out.obj
    PyBuffer_Release(&lines.out)  # nobody can change the size of what is in use, not even its owner
    PyByteArray_Resize(out, room)
    PyObject_GetBuffer(out, &lines.out, PyBUF_WRITABLE)
    return 0


cdef inline int append(Pass* lines, Slice text) except -1 nogil:
    if text.size == 0:
        return 0
    if lines.size + text.size > lines.out.len:
        grow(lines, 2 * (lines.size + text.size) + 4096)
    put(<char*>lines.out.buf + lines.size, text)
    lines.size += text.size
    return 0


cdef inline int tell(Pass* lines, const Kept* kept, const Kept* image) except -1 nogil:
    """Answers the line that ``lines`` stands at."""
    cdef char number[24]
    cdef int i, digits
    for i in range(kept.pieces):
        append(lines, kept.piece[i].text)
        if kept.piece[i].hole == ID_HOLE:
            append(lines, lines.job.id)
        elif kept.piece[i].hole == IMAGE_HOLE:
            append(lines, image.piece[0].text)
        elif kept.piece[i].hole == LINE_HOLE:
            digits = snprintf(number, sizeof(number), "%lld", lines.line)
            append(lines, Slice(&number[0], digits))
    lines.counts[kept.count] += 1
    return 0


cdef inline Slice key_of_job(Job* job, const Kept* image, char* key) noexcept nogil:
    job.kind.said[FACTS] = Slice(<const char*>&image.count, sizeof(int))
    return write_key(&job.kind, key)


cdef inline Kept* recall_answer(const Memo* answers, Job* job, const Kept* image) noexcept nogil:
    cdef char key[MAX_KEY_BYTES]
    return recall(answers, key_of_job(job, image, key))


cdef inline bint tell_known(const Memo* images, const Memo* answers, Pass* lines) except -1 nogil:
    """Whether all lines are answered; else ``lines.line`` is the number of one that must be asked about."""
    cdef const char* end
    cdef Kept* image
    cdef Kept* kept
    while lines.at < lines.end:
        end = <const char*>memchr(lines.at, c"\n", <size_t>(lines.end - lines.at))
        end = lines.end if end == NULL else end
        lines.missed = cut(lines.at, end)
        lines.at = end + 1
        lines.line += 1
        lines.is_plain = read_job(lines.missed, &lines.job)
        image = recall(images, lines.job.image) if lines.is_plain else NULL
        kept = recall_answer(answers, &lines.job, image) if image != NULL else NULL
        if kept == NULL:
            return False
        tell(lines, kept, image)
    return True


cdef inline long long count_lines(const char* at, Py_ssize_t size) noexcept nogil:
    cdef long long found = 0
    cdef const char* end = at + size
    cdef unsigned char some  # a count in bytes, which compilers make of many at once
    cdef int i
    while end - at >= 128:
        some = 0
        for i in range(128):
            some += at[i] == c"\n"
        found += some
        at += 128
    while at < end:
        found += at[0] == c"\n"
        at += 1
    return found
