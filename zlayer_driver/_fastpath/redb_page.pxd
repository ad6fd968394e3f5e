"""One page of a redb B+tree, leaf or branch: where its keys and values stand, and the search of a key.

Keys of a page that is kept are searched by numbers: most begin alike, and the eight bytes behind that tell them apart.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcmp, memcpy, memset

from zlayer_driver._fastpath.grammar cimport Slice


cdef extern from "zlayer_driver/_fastpath/xxh3.h" nogil:
    uint64_t xxh3_swapped(const unsigned char* at)
    uint32_t xxh3_u32(const unsigned char* at)


cdef enum:
    LEAF = 1
    BRANCH = 2


cdef struct Shape:
    long long key_bytes  # -1: keys vary
    long long value_bytes


cdef struct Node:
    const unsigned char* raw
    uint32_t count
    bint is_leaf
    uint64_t key_table
    uint64_t key_start
    uint64_t value_table
    uint64_t value_start
    Shape shape
    const uint64_t* heads  # of a kept page
    uint64_t shared


cdef struct KeptPage:
    uint64_t page
    unsigned char checksum[16]
    unsigned char* raw
    uint64_t* heads  # of its keys, as numbers: the first bytes behind the `shared` ones; NULL: its keys are searched as they stand
    uint64_t shared  # how many bytes all its keys begin with


cdef inline uint64_t end_of(const Node* node, uint64_t table, uint64_t start, long long width, uint32_t i) noexcept nogil:
    return xxh3_u32(node.raw + table + 4 * i) if width < 0 else start + <uint64_t>width * (i + 1)


cdef inline Slice key_of(const Node* node, uint32_t i) noexcept nogil:
    cdef uint64_t begin = node.key_start if i == 0 else end_of(node, node.key_table, node.key_start, node.shape.key_bytes, i - 1)
    cdef uint64_t end = end_of(node, node.key_table, node.key_start, node.shape.key_bytes, i)
    return Slice(<const char*>node.raw + begin, <Py_ssize_t>(end - begin))


cdef inline Slice value_of(const Node* node, uint32_t i) noexcept nogil:
    cdef uint64_t begin = node.value_start
    cdef uint64_t end = end_of(node, node.value_table, node.value_start, node.shape.value_bytes, i)
    if i > 0:
        begin = end_of(node, node.value_table, node.value_start, node.shape.value_bytes, i - 1)
    return Slice(<const char*>node.raw + begin, <Py_ssize_t>(end - begin))


cdef inline bint lay_out(Node* node, const unsigned char* raw, Shape shape) noexcept nogil:
    """Finds a page's sections; their offsets are not looked at yet."""
    cdef uint64_t head
    node.raw = raw
    node.count = raw[2] | <uint32_t>raw[3] << 8
    node.is_leaf = raw[0] == LEAF
    node.shape = shape
    node.heads = NULL
    head = 4 if node.is_leaf else 8 + 24 * (<uint64_t>node.count + 1)
    node.key_table = head
    node.value_table = head + (4 * <uint64_t>node.count if shape.key_bytes < 0 else 0)
    node.key_start = node.value_table + (4 * <uint64_t>node.count if node.is_leaf and shape.value_bytes < 0 else 0)
    return (raw[0] == LEAF or raw[0] == BRANCH) and node.count > 0


cdef inline bint in_order(Node* node, uint64_t table, uint64_t start, long long width, uint64_t size, uint64_t* end) noexcept nogil:
    """Whether a section's items lie one behind the other inside the page, and where the last one ends."""
    cdef uint32_t i
    cdef uint64_t last = start
    if start > size or (width >= 0 and start + <uint64_t>width * node.count > size):
        return False
    if width >= 0:
        end[0] = start + <uint64_t>width * node.count
        return True
    for i in range(node.count):
        end[0] = xxh3_u32(node.raw + table + 4 * i)
        if end[0] < last:
            return False
        last = end[0]
    return last <= size


cdef inline int compare(Slice one, Slice other) noexcept nogil:
    cdef int order = memcmp(one.at, other.at, <size_t>min(one.size, other.size))
    return order if order != 0 else (one.size > other.size) - (one.size < other.size)


cdef inline uint64_t head_of(Slice key, uint64_t shared) noexcept nogil:
    """Eight bytes of a key as a number that orders as they do; what is missing is zero."""
    cdef unsigned char raw[8]
    cdef Py_ssize_t left = key.size - <Py_ssize_t>shared
    if left >= 8:
        return xxh3_swapped(<const unsigned char*>key.at + shared)
    memset(raw, 0, 8)
    memcpy(raw, key.at + shared, <size_t>left)
    return xxh3_swapped(raw)


cdef inline void take_heads(KeptPage* kept, const Node* node) noexcept nogil:
    """Prepares the search of a page whose keys are in order; without memory or order it is searched as it stands."""
    cdef Slice first = key_of(node, 0)
    cdef Slice last = key_of(node, node.count - 1)
    cdef uint32_t i
    kept.heads = NULL
    kept.shared = 0
    for i in range(1, node.count):
        if compare(key_of(node, i - 1), key_of(node, i)) >= 0:
            return
    while <Py_ssize_t>kept.shared < min(first.size, last.size) and first.at[kept.shared] == last.at[kept.shared]:
        kept.shared += 1
    kept.heads = <uint64_t*>malloc(node.count * sizeof(uint64_t))
    if kept.heads != NULL:
        for i in range(node.count):
            kept.heads[i] = head_of(key_of(node, i), kept.shared)


cdef inline uint32_t rank(const uint64_t* heads, uint32_t count, uint64_t head) noexcept nogil:
    """How many of ``heads``, of which there is one at least, are below ``head``; without a branch that could be guessed wrong."""
    cdef uint32_t low = 0
    cdef uint32_t half
    while count > 1:
        half = count // 2
        low += half * (heads[low + half - 1] < head)
        count -= half
    return low + (heads[low] < head)


cdef inline uint32_t position(const Node* node, Slice key) noexcept nogil:
    """The first item whose key is not below ``key``."""
    cdef uint32_t low = 0
    cdef uint32_t high = node.count
    cdef uint32_t middle
    cdef uint64_t head
    cdef int order
    if node.heads != NULL:
        order = compare(Slice(key.at, min(key.size, <Py_ssize_t>node.shared)), Slice(key_of(node, 0).at, <Py_ssize_t>node.shared))
        if order != 0:
            return 0 if order < 0 else node.count
        head = head_of(key, node.shared)
        low = rank(node.heads, node.count, head)
        high = low
        while high < node.count and node.heads[high] == head:
            high += 1
    while low < high:
        middle = (low + high) // 2
        if compare(key_of(node, middle), key) < 0:
            low = middle + 1
        else:
            high = middle
    return low
