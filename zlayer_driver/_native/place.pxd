"""Lines of jobs read in place, and answers to what was asked before, without an object per line.

A line is *plain* if it is a JSON object whose keys are without escapes and each there once, and whose id, image, runtime, isolation label
and platform are printable ASCII without escapes. Plain lines that agree in runtime, label and platform, and whose images have the same
facts, have the same answer but for the id, the line's number and the image. So the first is asked about, and what is told is kept as text
with holes; what is known of images is kept beside it.

Threads share memos: what one keeps is complete before it can be found, never changes and never goes. Memos are filled under the
interpreter lock and read without.
"""

from libc.stdint cimport uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcmp, memcpy, memset

from zlayer_driver._native.json cimport Reader, read_text, skip_scalar, skip_space, take, take_word
from zlayer_driver._native.reference cimport Slice, cut, equals, put


cdef extern from *:
    """
    /* Bytes of a plain text: printable ASCII but the quote and the backslash. */
    static inline int is_printable(unsigned char byte) {
        return byte >= 0x20 && byte < 0x7F && byte != '"' && byte != '\\\\';
    }
    /* The one word that a thread writes while others read it. */
    static inline void *published(void **slot) { return __atomic_load_n(slot, __ATOMIC_ACQUIRE); }
    static inline void publish(void **slot, void *made) { __atomic_store_n(slot, made, __ATOMIC_RELEASE); }
    """
    bint is_printable(unsigned char byte) nogil
    void* published(void** slot) nogil
    void publish(void** slot, void* made) nogil


cdef enum:
    MAX_ID_BYTES = 512  # a longer one is refused
    MAX_IMAGE_BYTES = 512
    MAX_KEYS = 32  # of one object
    MAX_NESTING = 32
    MAX_KEY_BYTES = 1024
    MAX_PIECES = 12
    MAX_COUNTS = 64
    SLOTS = 1 << 16
    MAX_KEPT = 3 << 14
    MAX_KEPT_BYTES = 16 << 20
    MAX_PROBES = 16
    ID_HOLE = 1
    LINE_HOLE = 2
    IMAGE_HOLE = 3


cdef struct Job:  # a text that is absent is empty
    Slice id
    Slice image
    Slice runtime
    Slice label
    Slice os
    Slice arch


cdef enum Where:
    IN_JOB
    IN_LABELS
    IN_PLATFORM
    ELSEWHERE


cdef struct Piece:  # text, and the hole behind it (0: none)
    Slice text
    char hole


cdef struct Kept:
    uint64_t hash
    Slice key  # in `memory`, as are the pieces
    int count  # of an answer: which counter it adds to; of an image: the number of its facts
    int pieces
    Piece piece[MAX_PIECES]
    char memory[1]


cdef struct Memo:
    void** slots
    int kept
    Py_ssize_t kept_bytes


cdef struct Pass:  # one way through a chunk of lines; `missed` is the line that ended it, and `job` is that line's if it is plain
    const char* at
    const char* end
    long long line
    Slice missed
    Job job
    bint is_plain
    char* out
    Py_ssize_t size
    Py_ssize_t room
    long long counts[MAX_COUNTS]


cdef enum Ending:
    AT_END
    MISSED
    NO_MEMORY


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
        return take_word(r, "null", 4) or (read_plain(r, &job.runtime) and job.runtime.size > 0)
    if equals(key, "labels", 6):
        return take_word(r, "null", 4) or read_members(r, job, IN_LABELS)
    if equals(key, "platform", 8):
        return take_word(r, "null", 4) or read_members(r, job, IN_PLATFORM)
    return skip_once(r, job)


cdef inline bint read_of_platform(Reader* r, Job* job, Slice key) noexcept nogil:
    if equals(key, "os", 2):
        return take_word(r, "null", 4) or (read_plain(r, &job.os) and job.os.size > 0)
    return equals(key, "arch", 4) and (take_word(r, "null", 4) or read_plain(r, &job.arch))


cdef inline bint read_of_labels(Reader* r, Job* job, Slice key) noexcept nogil:
    cdef Slice ignored
    if take_word(r, "null", 4):
        return True
    if equals(key, "com.zlayer.isolation", 20):
        return read_plain(r, &job.label)
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
        and job.runtime.size + job.label.size + job.os.size + job.arch.size + 4 + <Py_ssize_t>sizeof(int) <= MAX_KEY_BYTES
    )


cdef inline char* put_key(char* out, Slice text) noexcept nogil:
    if text.size > 0:  # an absent text is nowhere
        put(out, text)
    out[text.size] = 0
    return out + text.size + 1


cdef inline Slice write_key(const Job* job, int facts, char* key) noexcept nogil:
    """What decides: the number of the image's facts, and the texts with a NUL behind each."""
    cdef char* at = key + sizeof(int)
    memcpy(key, &facts, sizeof(int))
    return cut(key, put_key(put_key(put_key(put_key(at, job.runtime), job.label), job.os), job.arch))


cdef inline uint64_t hash_of(const char* at, Py_ssize_t size) noexcept nogil:
    """Spreads keys over the slots; whoever makes keys collide gains only that their lines are asked about."""
    cdef uint64_t found = <uint64_t>size
    cdef uint64_t word
    while size > 0:
        word = 0
        memcpy(&word, at, <size_t>(size if size < 8 else 8))
        found = (found ^ word) * <uint64_t>0x9E3779B97F4A7C15
        found ^= found >> 29
        at += 8
        size -= 8
    return found ^ (found >> 32)


cdef inline Kept* recall(const Memo* memo, Slice key) noexcept nogil:
    cdef uint64_t wanted = hash_of(key.at, key.size)
    cdef Kept* kept
    cdef int i
    for i in range(MAX_PROBES):
        kept = <Kept*>published(&memo.slots[(wanted + <uint64_t>i) % SLOTS])
        if kept == NULL:
            return NULL
        if kept.hash == wanted and kept.key.size == key.size and memcmp(kept.key.at, key.at, <size_t>key.size) == 0:
            return kept
    return NULL


cdef inline bint prepare(Memo* memo) noexcept nogil:
    memset(memo, 0, sizeof(Memo))
    memo.slots = <void**>calloc(SLOTS, sizeof(void*))
    return memo.slots != NULL


cdef inline void forget(Memo* memo) noexcept nogil:
    cdef int i
    if memo.slots != NULL:
        for i in range(SLOTS):
            free(memo.slots[i])
        free(memo.slots)


cdef inline void cut_pieces(Kept* kept, Slice text) noexcept nogil:
    """Cuts ``text`` at its holes, of which there are less than `MAX_PIECES`."""
    cdef const char* end = text.at + text.size
    cdef const char* at = text.at
    cdef const char* start = text.at
    kept.pieces = 0
    while at <= end and kept.pieces < MAX_PIECES:
        if at == end or ID_HOLE <= at[0] <= IMAGE_HOLE:
            kept.piece[kept.pieces] = Piece(cut(start, at), 0 if at == end else at[0])
            kept.pieces += 1
            start = at + 1
        at += 1


cdef inline Kept* make_kept(Slice key, Slice text, int count) noexcept nogil:
    """An answer with holes and what it answers, or an image's canonical name and its name; NULL without memory."""
    cdef Kept* kept = <Kept*>malloc(sizeof(Kept) + <size_t>(key.size + text.size))
    if kept != NULL:
        kept.hash = hash_of(key.at, key.size)
        kept.count = count
        kept.key = Slice(&kept.memory[0], key.size)
        put(put(&kept.memory[0], key), text)
        cut_pieces(kept, Slice(kept.key.at + key.size, text.size))
    return kept


cdef inline bint keep(Memo* memo, Kept* kept) noexcept:
    """Takes ``kept`` over, if there is room and it is not there yet."""
    cdef Py_ssize_t size = <Py_ssize_t>sizeof(Kept) + kept.key.size
    cdef int i
    for i in range(kept.pieces):
        size += kept.piece[i].text.size + 1
    if memo.kept == MAX_KEPT or memo.kept_bytes + size > MAX_KEPT_BYTES:
        return False
    if recall(memo, kept.key) != NULL:
        return False
    for i in range(MAX_PROBES):
        if memo.slots[(kept.hash + <uint64_t>i) % SLOTS] == NULL:
            publish(&memo.slots[(kept.hash + <uint64_t>i) % SLOTS], kept)
            memo.kept += 1
            memo.kept_bytes += size
            return True
    return False


cdef inline bint ensure(Pass* lines, Py_ssize_t size) noexcept nogil:
    """Makes room for ``size`` bytes more."""
    cdef Py_ssize_t room = lines.room
    cdef char* grown
    if lines.size + size <= room:
        return True
    while room < lines.size + size:
        room = 2 * room + 4096
    grown = <char*>realloc(lines.out, <size_t>room)
    if grown == NULL:
        return False
    lines.out = grown
    lines.room = room
    return True


cdef inline bint append(Pass* lines, Slice text) noexcept nogil:
    if text.size == 0:
        return True
    if not ensure(lines, text.size):
        return False
    put(lines.out + lines.size, text)
    lines.size += text.size
    return True


cdef inline bint tell(Pass* lines, const Kept* kept, const Kept* image) noexcept nogil:
    """Answers the line that ``lines`` stands at."""
    cdef char number[24]
    cdef int i, digits
    for i in range(kept.pieces):
        if not append(lines, kept.piece[i].text):
            return False
        if kept.piece[i].hole == ID_HOLE and not append(lines, lines.job.id):
            return False
        if kept.piece[i].hole == IMAGE_HOLE and not append(lines, image.piece[0].text):
            return False
        if kept.piece[i].hole == LINE_HOLE:
            digits = snprintf(number, sizeof(number), "%lld", lines.line)
            if not append(lines, Slice(&number[0], digits)):
                return False
    lines.counts[kept.count] += 1
    return True


cdef inline Kept* recall_answer(const Memo* answers, const Job* job, const Kept* image) noexcept nogil:
    cdef char key[MAX_KEY_BYTES]
    return recall(answers, write_key(job, image.count, key))


cdef inline Ending tell_known(const Memo* images, const Memo* answers, Pass* lines) noexcept nogil:
    """Answers lines until one must be asked about; ``lines.line`` is then that line's number."""
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
            return MISSED
        if not tell(lines, kept, image):
            return NO_MEMORY
    return AT_END


cdef inline long long count_lines(const char* at, Py_ssize_t size) noexcept nogil:
    cdef long long found = 0
    cdef Py_ssize_t i
    for i in range(size):
        found += at[i] == c"\n"
    return found
