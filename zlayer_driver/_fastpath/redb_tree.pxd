"""Pages and B+trees of redb files, by the rules of the readable twin (`_fastpath_py.redb`), which explains the format.

Pages are copied out of the file, verified once and kept by number and checksum: a page that was overwritten no longer has the checksum
that its parent names, so that a kept page is never stale. A mapping would be one copy less, and a crash where a writer shortens the file.
"""

from libc.errno cimport EINTR, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy
from posix.types cimport off_t

from zlayer_driver._fastpath.grammar cimport Slice
from zlayer_driver._fastpath.redb_page cimport (
    BRANCH, KeptPage, Node, Shape, compare, in_order, key_of, lay_out, position, take_heads, value_of,
)
from zlayer_driver._fastpath.text cimport text_of


cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void* buffer, size_t size, off_t offset)


cdef extern from "zlayer_driver/_fastpath/xxh3.h" nogil:
    uint64_t xxh3_u64(const unsigned char* at)
    uint32_t xxh3_u32(const unsigned char* at)
    bint xxh3_matches(const unsigned char* data, size_t size, const unsigned char* checksum)


cdef enum:
    HEADER_BYTES = 320
    MAX_PAGE_BYTES = 16777216
    MAX_BRANCH_BYTES = 262144
    MAX_DEPTH = 32
    FEW_PAGES = 64  # are kept at first, and more once more are missed
    MANY_PAGES = 4096
    KEPT_PAGE_BYTES = 8192
    WAYS = 8


cdef enum Verdict:
    NOT_REDB = -6
    NO_MEMORY = -5
    TOO_LARGE = -4  # a page that can hold no manifest or config
    CUT_OFF = -3  # a page lies outside the file: an older commit cannot make up for what is lost
    DAMAGED = -2
    NOT_HERE = 0
    GOOD = 1


cdef struct Root:
    bint there
    uint64_t page
    unsigned char checksum[16]


cdef struct Table:
    Root root
    Shape shape
    bint blobs  # a plain table of &str -> &[u8]


cdef struct Slot:
    int version
    Root user
    Root system
    Root freed
    uint64_t transaction
    bint sound


cdef struct Redb:
    int fd
    uint64_t size
    uint64_t page_size
    uint64_t header_pages
    uint64_t data_pages
    int flags
    bint settled
    uint64_t pages
    uint64_t left  # pages that a walk may still visit: each hangs from one parent
    Slot slots[2]
    Table table
    const char* reason  # of the last verdict below NOT_HERE
    KeptPage* kept
    uint32_t kept_pages
    uint32_t missed_pages
    unsigned char* loose[2]  # pages too large to keep, one for each of the two blobs that a caller may hold


cdef inline Verdict refuse(Redb* file, Verdict verdict, const char* reason) noexcept nogil:
    file.reason = reason
    return verdict


cdef inline Root root_at(const unsigned char* raw, bint there) noexcept nogil:
    cdef Root root
    root.there = there
    root.page = xxh3_u64(raw)
    memcpy(root.checksum, raw + 8, 16)
    return root


cdef inline Verdict read_exactly(Redb* file, unsigned char* out, uint64_t size, uint64_t start) noexcept nogil:
    cdef ssize_t got
    cdef uint64_t done = 0
    while done < size:
        got = pread(file.fd, out + done, <size_t>(size - done), <off_t>(start + done))
        if got > 0:
            done += <uint64_t>got
        elif got == 0 or errno != EINTR:
            return refuse(file, CUT_OFF, "a page lies outside the file")
    return GOOD


cdef inline Verdict locate(Redb* file, uint64_t page, uint64_t* start, uint64_t* size) noexcept nogil:
    """Where a page lies. The multiplications cannot overflow: region, pages and page size have 20, 33 and 16 bits, an order 31."""
    cdef int order = <int>(page >> 59)
    cdef uint64_t region = page >> 20 & 0xFFFFF
    size[0] = file.page_size << order
    start[0] = file.page_size * (1 + file.header_pages)
    if start[0] > file.size or region > file.size // (file.page_size * (file.header_pages + file.data_pages)):
        return refuse(file, CUT_OFF, "a page lies outside the file")
    start[0] += region * (file.header_pages + file.data_pages) * file.page_size
    if size[0] > file.size or (page & (<uint64_t>0xFFFFF >> order)) > file.size // size[0]:
        return refuse(file, CUT_OFF, "a page lies outside the file")
    start[0] += (page & (<uint64_t>0xFFFFF >> order)) * size[0]
    if start[0] + size[0] > file.size:
        return refuse(file, CUT_OFF, "a page lies outside the file")
    if file.left == 0:
        return refuse(file, DAMAGED, "its trees have a loop")
    file.left -= 1
    if size[0] > MAX_PAGE_BYTES:
        return refuse(file, TOO_LARGE, "a page is larger than 16 MiB")
    return GOOD


cdef inline Root child_of(const Node* node, uint32_t i) noexcept nogil:
    cdef Root root
    root.there = True
    memcpy(root.checksum, node.raw + 8 + 16 * i, 16)
    root.page = xxh3_u64(node.raw + 8 + 16 * (node.count + 1) + 8 * i)
    return root


cdef inline Verdict check_node(Redb* file, Node* node, uint64_t size, const unsigned char* checksum) noexcept nogil:
    cdef uint64_t end = 0
    if not in_order(node, node.key_table, node.key_start, node.shape.key_bytes, size, &end):
        return refuse(file, DAMAGED, "a page's offsets make no sense")
    node.value_start = end
    if node.is_leaf and not in_order(node, node.value_table, node.value_start, node.shape.value_bytes, size, &end):
        return refuse(file, DAMAGED, "a page's offsets make no sense")
    if not xxh3_matches(node.raw, <size_t>end, checksum):
        return refuse(file, DAMAGED, "a page does not have its checksum")
    return GOOD


cdef inline Verdict read_node(Redb* file, const Root* root, Shape shape, Node* node, unsigned char** raw) noexcept nogil:
    """Reads and verifies a page; the caller frees ``raw``, which is set only with GOOD."""
    cdef uint64_t start, size
    cdef unsigned char* page
    cdef Verdict verdict = locate(file, root.page, &start, &size)
    if verdict != GOOD:
        return verdict
    page = <unsigned char*>malloc(<size_t>size)
    if page == NULL:
        return refuse(file, NO_MEMORY, "there is no memory for a page")
    verdict = read_exactly(file, page, size, start)
    if verdict == GOOD and page[0] == BRANCH and size > MAX_BRANCH_BYTES:
        verdict = refuse(file, DAMAGED, "a branch page is larger than 256 KiB")
    if verdict == GOOD and not lay_out(node, page, shape):
        verdict = refuse(file, DAMAGED, "a page is neither leaf nor branch")
    if verdict == GOOD:
        verdict = check_node(file, node, size, root.checksum)
    if verdict != GOOD:
        free(page)
        return verdict
    raw[0] = page
    return GOOD


cdef inline bint is_kept(const KeptPage* kept, const Root* root) noexcept nogil:
    return kept.raw != NULL and kept.page == root.page and memcmp(kept.checksum, root.checksum, 16) == 0


cdef inline KeptPage* places_of(const Redb* file, uint64_t page) noexcept nogil:
    """Where a page is kept, if it is: in one of `WAYS` places. In a table of a multiple of the size, what shared them shares as many."""
    return &file.kept[WAYS * ((page * <uint64_t>0x9E3779B97F4A7C15 >> 32) & (file.kept_pages // WAYS - 1))]


cdef inline KeptPage* free_place(const Redb* file, uint64_t page) noexcept nogil:
    """One of them that is free, or else that of the page that is to go."""
    cdef KeptPage* places = places_of(file, page)
    cdef int i
    for i in range(WAYS):
        if places[i].raw == NULL:
            return &places[i]
    return &places[file.missed_pages % WAYS]


cdef inline void keep_more(Redb* file) noexcept nogil:
    """Moves the kept pages into a table of eight times the size; without memory for one, the small one goes on."""
    cdef uint32_t i
    cdef KeptPage* small = file.kept
    cdef KeptPage* kept = <KeptPage*>calloc(8 * file.kept_pages, sizeof(KeptPage))
    if kept == NULL:
        return
    file.kept = kept
    file.kept_pages *= 8
    for i in range(file.kept_pages // 8):
        if small[i].raw != NULL:
            free_place(file, small[i].page)[0] = small[i]
    free(small)


cdef inline Verdict node_of(Redb* file, const Root* root, Node* node, int which) noexcept nogil:
    """A page of a tree of variable keys and values; valid until the next call with the same ``which``, if it is a leaf."""
    cdef KeptPage* kept = places_of(file, root.page)
    cdef unsigned char* raw = NULL
    cdef Verdict verdict
    cdef int i
    for i in range(WAYS):
        if is_kept(&kept[i], root):
            lay_out(node, kept[i].raw, Shape(-1, -1))
            node.heads, node.shared = kept[i].heads, kept[i].shared
            node.value_start = xxh3_u32(node.raw + node.key_table + 4 * (node.count - 1))
            return GOOD
    verdict = read_node(file, root, Shape(-1, -1), node, &raw)
    if verdict != GOOD:
        return verdict
    if file.page_size << (root.page >> 59) <= KEPT_PAGE_BYTES:
        file.missed_pages += 1
        if file.missed_pages > file.kept_pages and file.kept_pages < MANY_PAGES:
            keep_more(file)
        kept = free_place(file, root.page)
        free(kept.raw)
        free(kept.heads)
        kept.page, kept.raw = root.page, raw
        take_heads(kept, node)
        memcpy(kept.checksum, root.checksum, 16)
    else:
        free(file.loose[which])
        file.loose[which] = raw
    return GOOD


cdef inline void rewind(Redb* file) noexcept nogil:
    """Before each walk: more visits than pages mean a loop."""
    file.left = file.pages


cdef inline Verdict find_value(Redb* file, Root root, Slice key, Slice* value, int which) noexcept nogil:
    """The value under ``key`` in a tree of variable keys and values; valid as `node_of` says."""
    cdef Node node
    cdef uint32_t i
    cdef int _depth
    cdef Verdict verdict
    rewind(file)
    for _depth in range(MAX_DEPTH):
        if not root.there:
            return NOT_HERE
        verdict = node_of(file, &root, &node, which)
        if verdict != GOOD:
            return verdict
        i = position(&node, key)
        if node.is_leaf:
            if i == node.count or compare(key_of(&node, i), key) != 0:
                return NOT_HERE
            value[0] = value_of(&node, i)
            return GOOD
        root = child_of(&node, i)
    return refuse(file, DAMAGED, "a tree is too deep")


cdef inline int collect(Redb* file, Root root, list found, int depth) except? -1:
    cdef Node node
    cdef unsigned char* raw = NULL
    cdef uint32_t i
    if not root.there:
        return GOOD
    if depth == MAX_DEPTH:
        return refuse(file, DAMAGED, "a tree is too deep")
    if read_node(file, &root, Shape(-1, -1), &node, &raw) != GOOD:
        return DAMAGED
    try:
        for i in range(node.count + (not node.is_leaf)):
            if node.is_leaf:
                found.append(text_of(key_of(&node, i)))
            elif collect(file, child_of(&node, i), found, depth + 1) < 0:
                return DAMAGED
    finally:
        free(raw)
    return GOOD


cdef inline int collect_keys(Redb* file, list found) except? -1:
    """Appends the table's keys in their order; below 0 with a ``reason`` where they cannot be read."""
    rewind(file)
    return collect(file, file.table.root, found, 0)
