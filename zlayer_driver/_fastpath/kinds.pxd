"""What of a request decides, as a key; and memory of what was told to the first request of each kind.

Requests that agree in runtime, isolation label, platform and the facts of their image have one answer. So the first of a kind is asked
about, and this module knows none of the rules.

Threads share memos: what one keeps is complete before it can be found, never changes and never goes. Memos are filled under the
interpreter lock and read without.
"""

from libc.stdint cimport uint16_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset

from zlayer_driver._fastpath.grammar cimport Slice, cut, put


cdef extern from *:
    """
    /* The one word that a thread writes while others read it. */
    static inline void *published(void **slot) { return __atomic_load_n(slot, __ATOMIC_ACQUIRE); }
    static inline void publish(void **slot, void *made) { __atomic_store_n(slot, made, __ATOMIC_RELEASE); }
    """
    void* published(void** slot) nogil
    void publish(void** slot, void* made) nogil


cdef enum:  # what decides; FACTS alone may stand for all that is known of an image
    RUNTIME
    LABEL
    SYSTEM
    ARCH
    FACTS
    MARKER
    ISOLATED
    TEXTS


cdef enum:
    MAX_KEY_BYTES = 1024
    MAX_PIECES = 12
    MAX_KEPT_BYTES = 16 << 20
    MAX_PROBES = 16
    ID_HOLE = 1
    LINE_HOLE = 2
    IMAGE_HOLE = 3


cdef struct Kind:
    Slice said[TEXTS]  # a text that is absent is empty


cdef struct Piece:  # text, and the hole behind it (0: none)
    Slice text
    char hole


cdef struct Kept:
    uint64_t hash
    Slice key  # in `memory`, as are the pieces
    int count  # of an answer: which counter it adds to, or which of those told it is; of an image: the number of its facts
    int pieces
    Piece piece[MAX_PIECES]
    char memory[1]


cdef struct Memo:
    void** slots
    uint64_t slot_count
    uint64_t kept
    Py_ssize_t kept_bytes


cdef inline Slice write_key(const Kind* kind, char* key) noexcept nogil:
    """The texts one behind the other, each behind its size, in ``key``, which has `MAX_KEY_BYTES`; empty if they are longer."""
    cdef char* at = key
    cdef uint16_t size
    cdef Py_ssize_t left = MAX_KEY_BYTES - TEXTS * <Py_ssize_t>sizeof(uint16_t)
    cdef int i
    for i in range(TEXTS):
        left -= kind.said[i].size
        if left < 0:
            return Slice(key, 0)
        size = <uint16_t>kind.said[i].size
        memcpy(at, &size, sizeof(uint16_t))
        at += sizeof(uint16_t)
        at = put(at, kind.said[i])
    return cut(key, at)


cdef inline uint64_t mixed(uint64_t found, uint64_t word) noexcept nogil:
    found = (found ^ word) * <uint64_t>0x9E3779B97F4A7C15
    return found ^ found >> 29


cdef inline uint64_t hash_of(const char* at, Py_ssize_t size) noexcept nogil:
    """Spreads keys over the slots; whoever makes keys collide gains only that their lines are asked about."""
    cdef uint64_t found = <uint64_t>size
    cdef uint64_t word
    while size >= 8:
        memcpy(&word, at, 8)
        found = mixed(found, word)
        at += 8
        size -= 8
    if size > 0:
        word = 0
        memcpy(&word, at, <size_t>size)
        found = mixed(found, word)
    # A slot is told by low bits, which a product's high ones do not reach: keys that differ in their last bytes would share a few slots.
    found = (found ^ found >> 32) * <uint64_t>0xD6E8FEB86659FD93
    return found ^ found >> 32


cdef inline Kept* recall(const Memo* memo, Slice key) noexcept nogil:
    cdef uint64_t wanted = hash_of(key.at, key.size)
    cdef Kept* kept
    cdef int i
    for i in range(MAX_PROBES):
        kept = <Kept*>published(&memo.slots[(wanted + <uint64_t>i) % memo.slot_count])
        if kept == NULL:
            return NULL
        if kept.hash == wanted and kept.key.size == key.size and memcmp(kept.key.at, key.at, <size_t>key.size) == 0:
            return kept
    return NULL


cdef inline bint prepare(Memo* memo, uint64_t slot_count) noexcept nogil:
    memset(memo, 0, sizeof(Memo))
    memo.slots = <void**>calloc(<size_t>slot_count, sizeof(void*))
    memo.slot_count = slot_count
    return memo.slots != NULL


cdef inline void forget(Memo* memo) noexcept nogil:
    cdef uint64_t i
    if memo.slots != NULL:
        for i in range(memo.slot_count):
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
    if 4 * memo.kept >= 3 * memo.slot_count or memo.kept_bytes + size > MAX_KEPT_BYTES:
        return False
    if recall(memo, kept.key) != NULL:
        return False
    for i in range(MAX_PROBES):
        if memo.slots[(kept.hash + <uint64_t>i) % memo.slot_count] == NULL:
            publish(&memo.slots[(kept.hash + <uint64_t>i) % memo.slot_count], kept)
            memo.kept += 1
            memo.kept_bytes += size
            return True
    return False
