"""ZLayer's SQLite blob cache through libsqlite3, by the rules of the readable twin (`_fastpath_py.sqlite`): nothing is written or created.

It is the shared library that Python's ``sqlite3`` uses, and only SQLite opens the database file: two copies of SQLite in a process, or a
descriptor closed behind its back, would drop the file locks of a writer in this process.
"""

from libc.string cimport strlen

from zlayer_driver._fastpath.files cimport Stamp, look, same_stamp
from zlayer_driver._fastpath.grammar cimport Slice
from zlayer_driver._fastpath.text cimport text_of


cdef extern from "<sqlite3.h>" nogil:
    ctypedef struct sqlite3
    ctypedef struct sqlite3_stmt
    ctypedef void (*sqlite3_destructor_type)(void*)
    const int SQLITE_OK, SQLITE_ROW, SQLITE_DONE, SQLITE_BUSY, SQLITE_LOCKED, SQLITE_READONLY, SQLITE_PROTOCOL, SQLITE_NOTADB
    const int SQLITE_OPEN_READWRITE, SQLITE_OPEN_URI, SQLITE_OPEN_NOMUTEX, SQLITE_BLOB, SQLITE_TEXT
    const int SQLITE_DBCONFIG_TRUSTED_SCHEMA, SQLITE_LIMIT_LENGTH
    const sqlite3_destructor_type SQLITE_STATIC
    int sqlite3_open_v2(const char*, sqlite3**, int, const char*)
    int sqlite3_close(sqlite3*)
    int sqlite3_db_config(sqlite3*, int, ...)
    int sqlite3_busy_timeout(sqlite3*, int)
    int sqlite3_limit(sqlite3*, int, int)
    int sqlite3_prepare_v2(sqlite3*, const char*, int, sqlite3_stmt**, const char**)
    int sqlite3_bind_text(sqlite3_stmt*, int, const char*, int, sqlite3_destructor_type)
    int sqlite3_bind_int64(sqlite3_stmt*, int, long long)
    int sqlite3_step(sqlite3_stmt*)
    int sqlite3_reset(sqlite3_stmt*)
    int sqlite3_finalize(sqlite3_stmt*)
    int sqlite3_column_type(sqlite3_stmt*, int)
    const void* sqlite3_column_blob(sqlite3_stmt*, int)
    int sqlite3_column_bytes(sqlite3_stmt*, int)
    int sqlite3_exec(sqlite3*, const char*, void*, void*, char**)
    int sqlite3_get_autocommit(sqlite3*)
    int sqlite3_extended_errcode(sqlite3*)
    const char* sqlite3_errmsg(sqlite3*)


cdef enum Mode:
    STILL  # no log: immutable, read again if anything changed meanwhile
    LIVE  # -wal and -shm: SQLite's snapshot protocol on read-only shared memory
    LEFTOVER  # -wal alone: a private copy; read again if anything changed meanwhile
    LOCKED  # -journal: SQLite's locks


cdef struct State:
    Mode mode
    Stamp database
    Stamp wal


cdef struct Sqlite:
    sqlite3* db
    sqlite3_stmt* select[2]  # the same query twice: the first row stays valid, and its snapshot open, while the second is read


cdef inline int observe(const char* database, const char* wal, const char* shm, const char* journal, State* state) noexcept nogil:
    """1 and ``state``, 0 if there is no database, -1 (errno)."""
    cdef Stamp other
    cdef int there = look(database, &state.database)
    if there <= 0:
        return there
    there = look(wal, &state.wal)
    if there < 0:
        return there
    if there > 0 and state.wal.size > 0:
        there = look(shm, &other)
        state.mode = LIVE if there > 0 else LEFTOVER
        return -1 if there < 0 else 1
    state.wal = Stamp(0, 0, 0, 0, 0)
    there = look(journal, &other)
    state.mode = LOCKED if there > 0 and other.size > 0 else STILL
    return -1 if there < 0 else 1


cdef inline bint same_file(const Stamp* one, const Stamp* other) noexcept nogil:
    return one.device == other.device and one.inode == other.inode


cdef inline bint unguarded(Mode mode) noexcept nogil:
    return mode == STILL or mode == LEFTOVER


cdef inline bint same_state(const State* one, const State* other) noexcept nogil:
    return one.mode == other.mode and same_stamp(&one.database, &other.database) and same_stamp(&one.wal, &other.wal)


cdef inline void close_sqlite(Sqlite* cache) noexcept nogil:
    sqlite3_finalize(cache.select[0])
    sqlite3_finalize(cache.select[1])
    sqlite3_close(cache.db)
    cache.select[0] = cache.select[1] = NULL
    cache.db = NULL


cdef inline int is_cache(Sqlite* cache) noexcept nogil:
    """1 if there is a real table ``blobs``, 0 if not, -1 on an SQLite error."""
    cdef sqlite3_stmt* query = NULL
    cdef int code
    if sqlite3_prepare_v2(
        cache.db,
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'blobs' COLLATE NOCASE AND rootpage > 0",
        -1, &query, NULL,
    ) != SQLITE_OK:
        return -1
    code = sqlite3_step(query)
    sqlite3_finalize(query)
    return 1 if code == SQLITE_ROW else 0 if code == SQLITE_DONE else -1


cdef inline int open_sqlite(Sqlite* cache, const char* uri, int max_blob_bytes) noexcept nogil:
    """1 if opened, 0 if it is no blob cache, -1 on an SQLite error. Callers see to it that only one thread at a time uses it."""
    cdef int found, i
    cdef int code = sqlite3_open_v2(uri, &cache.db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI | SQLITE_OPEN_NOMUTEX, NULL)
    if code != SQLITE_OK:
        return -1
    sqlite3_busy_timeout(cache.db, 50)
    sqlite3_limit(cache.db, SQLITE_LIMIT_LENGTH, max_blob_bytes)
    sqlite3_db_config(cache.db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, NULL)
    sqlite3_exec(cache.db, "PRAGMA cache_size = -16384", NULL, NULL, NULL)  # KiB; pages are kept as they are read
    found = is_cache(cache)
    if found <= 0:
        return found
    if sqlite3_prepare_v2(cache.db, "SELECT last_accessed FROM blobs", -1, &cache.select[0], NULL) != SQLITE_OK:
        return -1
    sqlite3_finalize(cache.select[0])
    cache.select[0] = NULL
    for i in range(2):
        if sqlite3_prepare_v2(cache.db, "SELECT data FROM blobs WHERE digest = ?", -1, &cache.select[i], NULL) != SQLITE_OK:
            return -1
    return 1


cdef inline int select_row(Sqlite* cache, int which, Slice key, Slice* row) noexcept nogil:
    """1 and ``row`` (valid until `end_read`), 0 without a row of bytes or text, -1 on an SQLite error."""
    cdef sqlite3_stmt* query = cache.select[which]
    cdef int code
    sqlite3_reset(query)
    sqlite3_bind_text(query, 1, key.at, <int>key.size, SQLITE_STATIC)
    code = sqlite3_step(query)
    if code == SQLITE_DONE:
        return 0
    if code != SQLITE_ROW:
        return -1
    code = sqlite3_column_type(query, 0)
    if code != SQLITE_BLOB and code != SQLITE_TEXT:
        return 0
    row.at = <const char*>sqlite3_column_blob(query, 0)
    row.size = sqlite3_column_bytes(query, 0)
    return 1


cdef inline int begin_read(Sqlite* cache) noexcept nogil:
    """All rows until `end_read` are of one commit, if this is a database; -1 on an SQLite error."""
    if cache.db == NULL or not sqlite3_get_autocommit(cache.db):
        return 0
    return 0 if sqlite3_exec(cache.db, "BEGIN", NULL, NULL, NULL) == SQLITE_OK else -1


cdef inline void end_read(Sqlite* cache) noexcept nogil:
    sqlite3_reset(cache.select[0])
    sqlite3_reset(cache.select[1])
    if cache.db != NULL and not sqlite3_get_autocommit(cache.db):
        sqlite3_exec(cache.db, "COMMIT", NULL, NULL, NULL)


cdef inline int owns_spill(Sqlite* cache, Slice key, Slice low, Slice high, const char* name, Py_ssize_t size) noexcept nogil:
    """1 if the spill file ``name`` of ``size`` bytes is ``key``'s and can be no other key's, 0 if not, -1 on an SQLite error.

    Keys between ``low`` and ``high`` are those that could share it.
    """
    cdef sqlite3_stmt* query = NULL
    cdef int code
    if sqlite3_prepare_v2(
        cache.db,
        "SELECT 1 FROM blobs WHERE digest = ?1 AND size_bytes = ?2 AND NOT EXISTS (SELECT 1 FROM blobs WHERE digest >= ?3 AND digest < ?4"
        " AND digest != ?1 AND replace(replace(digest, ':', '_'), '/', '_') = ?5 AND length(data) = 0 AND size_bytes = ?2)",
        -1, &query, NULL,
    ) != SQLITE_OK:
        return -1
    sqlite3_bind_text(query, 1, key.at, <int>key.size, SQLITE_STATIC)
    sqlite3_bind_int64(query, 2, size)
    sqlite3_bind_text(query, 3, low.at, <int>low.size, SQLITE_STATIC)
    sqlite3_bind_text(query, 4, high.at, <int>high.size, SQLITE_STATIC)
    sqlite3_bind_text(query, 5, name, <int>strlen(name), SQLITE_STATIC)
    code = sqlite3_step(query)
    sqlite3_finalize(query)
    return 1 if code == SQLITE_ROW else 0 if code == SQLITE_DONE else -1


cdef inline int collect_digests(Sqlite* cache, list found) except? -2:
    """Appends all keys in byte order; -1 on an SQLite error."""
    cdef sqlite3_stmt* query = NULL
    cdef int code
    sqlite3_prepare_v2(
        cache.db, "SELECT CAST(digest AS BLOB) FROM blobs WHERE typeof(digest) = 'text' ORDER BY digest", -1, &query, NULL,
    )
    try:
        while True:
            code = sqlite3_step(query)
            if code != SQLITE_ROW:
                break
            found.append(text_of(Slice(<const char*>sqlite3_column_blob(query, 0), sqlite3_column_bytes(query, 0))))
    finally:
        sqlite3_finalize(query)
    return 0 if code == SQLITE_DONE else -1
