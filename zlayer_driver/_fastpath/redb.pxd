"""Which commit of a redb file counts, and where its table of blobs hangs: formats 1 to 3, by the rules of `_fastpath_py.redb`."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memset
from posix.fcntl cimport O_CLOEXEC, O_NONBLOCK, O_RDONLY, open
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close

from zlayer_driver._fastpath.redb_page cimport KeptPage, Node, Shape, value_of
from zlayer_driver._fastpath.redb_tree cimport (
    CUT_OFF, DAMAGED, FEW_PAGES, GOOD, HEADER_BYTES, MAX_DEPTH, NOT_HERE, NOT_REDB, NO_MEMORY, TOO_LARGE,
    Redb, Root, Slot, Table, Verdict,
    child_of, find_value, pread, read_node, refuse, rewind, root_at, xxh3_matches, xxh3_u32, xxh3_u64,
)
from zlayer_driver._fastpath.grammar cimport Slice


cdef inline Verdict read_table(Redb* file, Slice definition, int version, Table* table) noexcept nogil:
    cdef const unsigned char* raw = <const unsigned char*>definition.at
    cdef int root_at_ = 1 if version == 1 else 9
    cdef int widths = root_at_ + 1 + (24 if version == 1 else 32)
    cdef int types = widths + 18
    cdef int plain = 1 if version == 1 else 3
    cdef uint64_t size
    if definition.size < types + 4 or raw[0] < plain or raw[0] > plain + 1:
        return refuse(file, DAMAGED, "a table definition makes no sense")
    size = xxh3_u32(raw + types)
    if size > <uint64_t>(definition.size - types - 4):
        return refuse(file, DAMAGED, "a table definition makes no sense")
    table.root = root_at(raw + root_at_ + 1, raw[root_at_] != 0)
    table.shape.key_bytes = xxh3_u32(raw + widths + 1) if raw[widths] else -1
    table.shape.value_bytes = xxh3_u32(raw + widths + 6) if raw[widths + 5] else -1
    table.blobs = (
        raw[0] == plain and table.shape.key_bytes < 0 and table.shape.value_bytes < 0
        and size == 5 and definition.size - types - 4 == 11 and memcmp(raw + types + 4, "\x01&str\x01&[u8]", 11) == 0
    )
    return GOOD


cdef inline Verdict verify_tree(Redb* file, Root root, Shape shape, int tables, int depth) noexcept nogil:
    """Reads every page of a tree; if it is one of ``tables`` (their format), every page of theirs too."""
    cdef Node node
    cdef unsigned char* raw = NULL
    cdef uint32_t i
    cdef Verdict verdict
    if not root.there:
        return GOOD
    if depth == MAX_DEPTH:
        return refuse(file, DAMAGED, "a tree is too deep")
    verdict = read_node(file, &root, shape, &node, &raw)
    if verdict != GOOD:
        return GOOD if verdict == TOO_LARGE else verdict
    for i in range(node.count + (not node.is_leaf)):
        if not node.is_leaf:
            verdict = verify_tree(file, child_of(&node, i), shape, tables, depth + 1)
        elif tables:
            verdict = verify_table(file, value_of(&node, i), tables)
        if verdict != GOOD:
            break
    free(raw)
    return verdict


cdef inline Verdict verify_table(Redb* file, Slice definition, int version) noexcept nogil:
    cdef Table table
    cdef Verdict verdict = read_table(file, definition, version, &table)
    return verify_tree(file, table.root, table.shape, 0, 0) if verdict == GOOD else verdict


cdef inline Verdict verify_slot(Redb* file, const Slot* slot) noexcept nogil:
    cdef Verdict verdict
    rewind(file)
    verdict = verify_tree(file, slot.user, Shape(-1, -1), slot.version, 0)
    if verdict == GOOD:
        verdict = verify_tree(file, slot.system, Shape(-1, -1), slot.version, 0)
    if verdict == GOOD:
        verdict = verify_tree(file, slot.freed, Shape(16, -1), 0, 0)  # keyed by transaction and pagination number
    return verdict


cdef inline Verdict last_commit(Redb* file, const Slot** slot) noexcept nogil:
    """The slot that counts; after a crash, one from which every page has its checksum."""
    cdef const Slot* primary = &file.slots[file.flags & 1]
    cdef const Slot* other = &file.slots[1 - (file.flags & 1)]
    cdef const Slot* candidates[2]
    cdef int i
    cdef Verdict verdict
    slot[0] = primary
    if file.settled:
        if primary.version == 3 and not primary.sound:
            return refuse(file, DAMAGED, "its commit slot does not have its checksum")
        return GOOD
    candidates = [primary, other]
    if file.flags & 4 and primary.version != 1:
        candidates[1] = NULL
    elif primary.sound and other.sound and other.transaction > primary.transaction:
        candidates = [other, primary]
    for i in range(2):
        slot[0] = candidates[i]
        if slot[0] == NULL or not slot[0].sound:
            continue
        verdict = verify_slot(file, slot[0])
        if verdict != DAMAGED:
            return verdict
    return refuse(file, DAMAGED, "no commit in it is whole")


cdef inline Verdict read_slot(Redb* file, const unsigned char* raw, Slot* slot) noexcept nogil:
    cdef int step
    slot.version = raw[0]
    if not 1 <= raw[0] <= 3:
        return refuse(file, DAMAGED, "its format version is not known")
    step = 24 if raw[0] == 1 else 32
    slot.user = root_at(raw + 8, raw[1] != 0)
    slot.system = root_at(raw + 8 + step, raw[2] != 0)
    slot.freed = root_at(raw + 8 + 2 * step, raw[3] != 0 and raw[0] != 3)
    slot.transaction = xxh3_u64(raw + (80 if raw[0] == 1 else 104))
    slot.sound = xxh3_matches(raw, 112, raw + 112)
    return GOOD


cdef inline Verdict read_header(Redb* file) noexcept nogil:
    cdef unsigned char head[HEADER_BYTES]
    cdef ssize_t got = pread(file.fd, head, HEADER_BYTES, 0)
    cdef uint64_t full, rest, pages
    cdef Verdict verdict
    if got < 9 or memcmp(head, "redb\x1a\x0a\xa9\x0d\x0a", 9) != 0:
        return refuse(file, NOT_REDB, "it is no SQLite or redb file")
    if got < HEADER_BYTES:
        return refuse(file, DAMAGED, "it is shorter than its header")
    verdict = read_slot(file, head + 64, &file.slots[0])
    if verdict == GOOD:
        verdict = read_slot(file, head + 192, &file.slots[1])
    if verdict != GOOD:
        return verdict
    file.flags = head[9]
    file.page_size, file.header_pages, file.data_pages = xxh3_u32(head + 12), xxh3_u32(head + 16), xxh3_u32(head + 20)
    full, rest = xxh3_u32(head + 24), xxh3_u32(head + 28)
    if not 512 <= file.page_size <= 65536 or file.page_size & (file.page_size - 1) or file.data_pages == 0 or file.size % file.page_size:
        return refuse(file, DAMAGED, "its page layout makes no sense")
    if file.slots[0].version != file.slots[1].version:
        return refuse(file, DAMAGED, "its commit slots are of different formats")
    file.pages = file.size // file.page_size
    pages = file.pages - 1
    # Both sides are divided rather than multiplied: the products of damaged counts do not fit 64 bits.
    rest += file.header_pages if rest else 0
    file.settled = (
        not file.flags & 2 and pages >= rest
        and (pages == rest if full == 0 else (pages - rest) % full == 0 and (pages - rest) // full == file.header_pages + file.data_pages)
    )
    return GOOD


cdef inline Verdict find_blobs(Redb* file) noexcept nogil:
    cdef const Slot* slot = NULL
    cdef Slice definition
    cdef Verdict verdict = last_commit(file, &slot)
    if verdict != GOOD:
        return verdict
    verdict = find_value(file, slot.user, Slice("blob_data", 9), &definition, 0)
    if verdict == NOT_HERE:
        return refuse(file, DAMAGED, "it has no table blob_data")
    if verdict == GOOD:
        verdict = read_table(file, definition, slot.version, &file.table)
    if verdict == GOOD and not file.table.blobs:
        return refuse(file, DAMAGED, "its table blob_data is of another type")
    return verdict


cdef inline void close_redb(Redb* file) noexcept nogil:
    cdef uint32_t i
    if file.kept != NULL:
        for i in range(file.kept_pages):
            free(file.kept[i].raw)
            free(file.kept[i].heads)
        free(file.kept)
        free(file.loose[0])
        free(file.loose[1])
        close(file.fd)
    memset(file, 0, sizeof(Redb))


cdef inline Verdict open_redb(Redb* file, const char* path) noexcept nogil:
    """Anything but GOOD leaves only ``reason`` behind."""
    cdef struct_stat found
    cdef const char* reason
    cdef Verdict verdict
    file.fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
    if file.fd < 0:
        return refuse(file, CUT_OFF, "it cannot be opened")
    file.kept = <KeptPage*>calloc(FEW_PAGES, sizeof(KeptPage))
    file.kept_pages = FEW_PAGES
    if file.kept == NULL:
        close(file.fd)
        return refuse(file, NO_MEMORY, "there is no memory to read it")
    verdict = CUT_OFF
    file.reason = "it cannot be looked at"
    if fstat(file.fd, &found) == 0:
        file.size = <uint64_t>found.st_size
        verdict = read_header(file)
    if verdict == GOOD:
        verdict = find_blobs(file)
    if verdict != GOOD:
        reason = file.reason
        close_redb(file)
        file.reason = reason
    return verdict
