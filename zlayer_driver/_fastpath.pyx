# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=False
"""Image references, cache keys and local image facts, compiled. The twin `_fastpath_py` has the same functions and answers in plain Python.

The parts stand in ``_native``: `reference` and `json` read bytes in place, `sqlite` and `redb` walk a cache file, `files` and `digest` help them.
A handle is safe across threads because the interpreter lock is held throughout each call, and no Python code runs between reading a row
and letting go of it. It is safe after fork because a child abandons what its parent opened.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport errno
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strerror

from zlayer_driver._native.digest cimport hashes_to, is_sha256
from zlayer_driver._native.files cimport Buffer, read_file
from zlayer_driver._native.json cimport (
    CONFIG_SCHEMA, DIGEST, ISOLATION, MANIFEST_SCHEMA, MARKER, MAX_DOCUMENT_BYTES, OS_NAME, SIDECAR_SCHEMA,
    Answers, Schema, read_document, text_is, unescape,
)
from zlayer_driver._native.reference cimport (
    FAULT_ALGORITHM, FAULT_FORM, FAULT_LENGTH, FAULT_NONE,
    Fault, Parts, Slice, canonical_size, find, parse_parts, write_canonical,
)
from zlayer_driver._native.sqlite cimport (
    LEFTOVER, LIVE, SQLITE_BUSY, SQLITE_DONE, SQLITE_LOCKED, SQLITE_NOTADB, SQLITE_PROTOCOL, SQLITE_READONLY, SQLITE_ROW, STILL, UNOPENED,
    Sqlite, State, close_sqlite, end_read, observe, open_sqlite, owns_spill, remember_wal_index, same_file, same_state, select_row,
    sqlite3_column_blob, sqlite3_column_bytes, sqlite3_errmsg, sqlite3_extended_errcode, sqlite3_finalize, sqlite3_prepare_v2,
    sqlite3_step, sqlite3_stmt, unguarded, wal_index_unchanged,
)

import os
import shutil
import tempfile
from urllib.parse import quote

from zlayer_driver.errors import CacheBusy, CacheError, InvalidReference
from zlayer_driver.model import OS, ImageFacts, Reference


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size)
    void PyErr_Clear()
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_DATA(object text)
    bint PyUnicode_IS_ASCII(object text)


cdef extern from "<pthread.h>" nogil:
    int pthread_atfork(void (*prepare)() noexcept, void (*parent)() noexcept, void (*child)() noexcept)


cdef int ATTEMPTS = 8
cdef int MAX_BLOB_BYTES = 32 << 20
cdef Py_ssize_t MAX_MEMO = 65536

cdef object LINUX = OS.LINUX
cdef object WINDOWS = OS.WINDOWS
cdef object DARWIN = OS.DARWIN
cdef object NO_FACTS = ImageFacts()

cdef unsigned long forks = 0


cdef void count_fork() noexcept nogil:
    global forks
    forks += 1


pthread_atfork(NULL, NULL, count_fork)


cdef str text_of(Slice text):
    return None if text.at == NULL else PyUnicode_DecodeUTF8(text.at, text.size, "replace")


cdef Fault parse_text(str ref, Parts* parts) except? FAULT_FORM:
    cdef Py_ssize_t size
    cdef const char* text = PyUnicode_AsUTF8AndSize(ref, &size)
    if text == NULL:  # lone surrogates
        PyErr_Clear()
        return FAULT_FORM
    return parse_parts(text, size, parts)


cdef str reason_of(str ref, Fault fault, Parts* parts):
    cdef str algorithm
    if fault == FAULT_FORM:
        return "it is not of the form [HOST[:PORT]/]PATH[:TAG][@DIGEST]" if ref else "it is empty"
    if fault == FAULT_LENGTH:
        return "its repository is longer than 255 bytes"
    algorithm = text_of(parts.digest).partition(":")[0]
    if fault == FAULT_ALGORITHM:
        return f"digest algorithm {algorithm!r} is not supported"
    return f"a {algorithm} digest has {int(algorithm[3:]) // 4} hex digits"


cdef bytes prefixed(bytes prefix, str ref):
    """``prefix`` and the canonical form of ``ref`` in UTF-8, or ``ref`` itself where it does not parse; ``None`` if it is no UTF-8."""
    cdef Parts parts
    cdef Py_ssize_t size
    cdef bytes out
    if parse_text(ref, &parts) != FAULT_NONE:
        return prefix + ref.encode() if PyUnicode_IS_ASCII(ref) else encoded(prefix, ref)
    size = len(prefix)
    out = PyBytes_FromStringAndSize(NULL, size + canonical_size(&parts))
    memcpy(PyBytes_AS_STRING(out), PyBytes_AS_STRING(prefix), <size_t>size)
    write_canonical(&parts, PyBytes_AS_STRING(out) + size)
    return out


cdef bytes encoded(bytes prefix, str ref):
    try:
        return prefix + ref.encode()
    except UnicodeEncodeError:
        return None


def sanitize(str ref not None) -> str:
    """The directory name under which ZLayer keeps a natively built image."""
    cdef Py_ssize_t size = len(ref)
    cdef const char* text
    cdef char* out
    cdef str name
    if not PyUnicode_IS_ASCII(ref):
        return ref.replace("/", "_").replace(":", "_").replace("@", "_")
    text = <const char*>PyUnicode_DATA(ref)
    name = PyUnicode_New(size, 127)
    out = <char*>PyUnicode_DATA(name)
    for i in range(size):
        out[i] = b"_" if text[i] == b"/" or text[i] == b":" or text[i] == b"@" else text[i]
    return name


def sanitize_many(refs) -> list:
    return [sanitize(ref) for ref in refs]


def parse(str ref not None) -> Reference:
    """The parts of an image reference, by the grammar of the OCI distribution client that ZLayer uses; else `InvalidReference`."""
    cdef Parts parts
    cdef Fault fault = parse_text(ref, &parts)
    if fault != FAULT_NONE:
        raise InvalidReference(ref, reason_of(ref, fault, &parts))
    repository = text_of(parts.repository)
    return Reference(
        text_of(parts.registry), f"library/{repository}" if parts.official else repository, text_of(parts.tag), text_of(parts.digest),
    )


def canonical(str ref not None) -> str:
    """The one spelling of a reference that all caches use; a text that is no reference stays as it is."""
    cdef Parts parts
    cdef str out
    if parse_text(ref, &parts) != FAULT_NONE:
        return ref
    if not PyUnicode_IS_ASCII(ref):
        return prefixed(b"", ref).decode()
    out = PyUnicode_New(canonical_size(&parts), 127)
    write_canonical(&parts, <char*>PyUnicode_DATA(out))
    return out


def canonical_many(refs) -> list:
    return [canonical(ref) for ref in refs]


def cache_keys(str ref not None) -> tuple:
    """The blob cache's keys for an image's manifest, its manifest digest, and its name as typed."""
    name = canonical(ref)
    return f"manifest:{name}", f"manifest:digest-{name}", f"manifest-orig:{name}"


cdef object os_of(Slice name):
    if name.at == NULL:
        return None
    if text_is(name, "linux", 5):
        return LINUX
    if text_is(name, "windows", 7):
        return WINDOWS
    return DARWIN if text_is(name, "darwin", 6) else None


cdef str string_of(Slice raw):
    """A JSON string that was read, or ``None``."""
    cdef char* plain
    cdef Py_ssize_t size
    if raw.at == NULL or find(raw.at, raw.at + raw.size, b"\\") == NULL:
        return text_of(raw)
    plain = <char*>malloc(<size_t>raw.size)
    if plain == NULL:
        raise MemoryError
    try:
        size = unescape(raw, plain)
        return PyUnicode_DecodeUTF8(plain, size, NULL)
    finally:
        free(plain)


cdef bint read_answers(Slice document, const Schema* schema, Answers* answers) noexcept nogil:
    memset(answers, 0, sizeof(Answers))
    return read_document(document.at, document.size, schema, answers)


cdef Slice slice_of(bytes text):
    return Slice(PyBytes_AS_STRING(text), len(text))


cdef bytes path_bytes(str path):
    encoded_path = os.fsencode(path)
    if b"\0" in encoded_path:
        raise CacheError(path, "its name has a NUL")
    return encoded_path


cdef class BlobCache:
    """A read-only handle on a ZLayer blob cache (SQLite or redb, told by content); safe across threads and after fork.

    The handle follows its file: a replaced, grown or checkpointed file is read as it is at the call. Nothing is ever written.
    """

    cdef readonly str path
    cdef bytes _file, _wal, _shm, _journal, _spill_dir
    cdef Sqlite _sqlite
    cdef unsigned long _forks
    cdef bint _closed
    cdef dict _memo  # reference -> (facts, unreadable), as of `_sqlite.state`

    def __cinit__(self, path):
        self._sqlite.state.mode = UNOPENED
        self._forks = forks
        self._memo = {}
        self.path = database_file(os.fspath(path))
        self._file = path_bytes(self.path)
        self._wal, self._shm, self._journal = self._file + b"-wal", self._file + b"-shm", self._file + b"-journal"
        self._spill_dir = path_bytes(spill_dir(self.path))
        self._ready()

    def __dealloc__(self):
        self._drop()

    @property
    def format(self) -> str:
        return "sqlite"

    def close(self) -> None:
        self._closed = True
        self._drop()

    def __enter__(self) -> BlobCache:
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close()

    def get(self, str key not None):
        """The blob under ``sha256:…`` or ``manifest:…``; what does not hash to its digest counts as absent."""
        cdef bytes name = encoded(b"", key)
        cdef bytes found
        self._check_open()
        if name is None or b"\0" in name or not (name.startswith(b"manifest:") or is_sha256(slice_of(name))):
            return None
        for _ in range(ATTEMPTS):
            self._ready()
            found = self._get(name)
            if self._held():
                return found
        raise CacheBusy(self.path, "it changes faster than it can be read")

    def keys(self) -> list:
        """All keys of the cache's table, in byte order."""
        self._check_open()
        for _ in range(ATTEMPTS):
            self._ready()
            found = self._keys()
            if self._held():
                return found
        raise CacheBusy(self.path, "it changes faster than it can be read")

    def facts(self, str ref not None):
        """What this cache says of an image; nothing where it has no manifest or config, or cannot read them."""
        return self._asked(ref)[0]

    cdef tuple _asked(self, str ref):
        """The facts, and whether a config stands here that cannot be read: then no other cache may answer in its place."""
        cdef tuple answer
        cdef bint keep
        self._check_open()
        for _ in range(ATTEMPTS):
            if self._ready():
                answer = self._memo.get(ref)
                if answer is not None:
                    return answer
            else:
                self._memo.clear()
            keep = True
            answer = self._probe(ref, &keep)
            if self._held():
                if keep and len(self._memo) < MAX_MEMO:
                    self._memo[ref] = answer
                return answer
        raise CacheBusy(self.path, "it changes faster than it can be read")

    cdef int _check_open(self) except -1:
        if self._closed:
            raise CacheError(self.path, "the handle is closed")
        return 0

    cdef void _drop(self) noexcept:
        if self._forks == forks:
            close_sqlite(&self._sqlite)
        else:  # the parent's: closing them here could disturb its locks
            memset(&self._sqlite, 0, sizeof(Sqlite))
        self._forks = forks

    cdef object _failed(self):
        """The error that SQLite has just reported."""
        cdef int code = sqlite3_extended_errcode(self._sqlite.db) & 0xFF
        message = sqlite3_errmsg(self._sqlite.db).decode("utf-8", "replace")
        self._drop()
        busy = code in (SQLITE_BUSY, SQLITE_LOCKED, SQLITE_READONLY, SQLITE_PROTOCOL)
        return (CacheBusy if busy else CacheError)(self.path, message)

    cdef int _observe(self, State* state) except -1:
        cdef int there = observe(
            PyBytes_AS_STRING(self._file), PyBytes_AS_STRING(self._wal), PyBytes_AS_STRING(self._shm), PyBytes_AS_STRING(self._journal),
            state,
        )
        if there <= 0:
            self._drop()
            raise CacheError(self.path, "no such file" if there == 0 else strerror(errno).decode())
        return 0

    cdef bint _ready(self) except -1:
        """Opens the file, or keeps the open one; whether nothing was committed since the last read."""
        cdef State now
        self._observe(&now)
        if self._forks != forks:
            self._drop()
        if self._sqlite.state.mode != UNOPENED:
            if same_state(&now, &self._sqlite.state):
                if unguarded(now.mode) or (now.mode == LIVE and wal_index_unchanged(&self._sqlite)):
                    return True
            if (
                not unguarded(now.mode) and now.mode == self._sqlite.state.mode
                and same_file(&now.database, &self._sqlite.state.database) and same_file(&now.wal, &self._sqlite.state.wal)
            ):
                self._sqlite.state = now
                return False
        self._drop()
        self._open(&now)
        return False

    cdef int _open(self, State* state) except -1:
        if state.mode != LEFTOVER:
            options = {STILL: "immutable=1", LIVE: "readonly_shm=1"}.get(state.mode, "")
            return self._connect(self._file, state, f"?mode=ro&{options}")
        with tempfile.TemporaryDirectory() as scratch:  # SQLite keeps what it needs open
            copy = os.path.join(scratch, "copy")
            for suffix in ("", "-wal"):
                shutil.copyfile(self.path + suffix, copy + suffix)
            return self._connect(copy.encode(), state, "?mode=rw")

    cdef int _connect(self, bytes path, State* state, str options) except -1:
        cdef bytes uri = f"file:{quote(os.path.abspath(path))}{options}".encode()
        cdef int opened
        self._sqlite.state = state[0]
        opened = open_sqlite(&self._sqlite, PyBytes_AS_STRING(uri), MAX_BLOB_BYTES)
        if opened > 0:
            return 0
        if opened == 0:
            self._drop()
            raise CacheError(self.path, "it has no table «blobs»")
        if sqlite3_extended_errcode(self._sqlite.db) & 0xFF == SQLITE_NOTADB:
            self._drop()
            raise CacheError(self.path, "it is no SQLite or redb file")
        raise self._failed()

    cdef bint _held(self) except -1:
        """Ends a read; whether what it saw was one committed state."""
        cdef State now
        end_read(&self._sqlite)
        if not unguarded(self._sqlite.state.mode):
            remember_wal_index(&self._sqlite)
            return True
        self._observe(&now)
        if same_state(&now, &self._sqlite.state):
            return True
        self._drop()
        return False

    cdef bint _row(self, int which, Slice key, Slice* row) except -1:
        cdef int found = select_row(&self._sqlite, which, key, row)
        if found < 0:
            raise self._failed()
        return found

    cdef Buffer _spilled(self, Slice key):
        cdef bytes name = key.at[:key.size].replace(b":", b"_").replace(b"/", b"_")
        cdef bytes path = self._spill_dir + b"/" + name
        return read_file(PyBytes_AS_STRING(path), MAX_BLOB_BYTES)

    cdef bint _owns_spill(self, Slice key, Py_ssize_t size) except -1:
        cdef bytes text = key.at[:key.size]
        cdef bytes name = text.replace(b":", b"_").replace(b"/", b"_")
        cdef Py_ssize_t shared = 9  # names that share a file agree up to the first separator behind "manifest:"
        while shared < len(text) and text[shared] not in b"_/:":
            shared += 1
        low = text[:shared]
        high = low + b"\xf4\x8f\xbf\xbf"
        found = owns_spill(&self._sqlite, key, slice_of(low), slice_of(high), PyBytes_AS_STRING(name), size)
        if found < 0:
            raise self._failed()
        return found

    cdef bint _blob(self, int which, Slice key, Slice* blob, Buffer* spill) except -1:
        """The bytes under a key, verified; valid until `_held`, those of ``spill`` until the caller frees it."""
        cdef bint is_digest = is_sha256(key)
        cdef bint there = self._row(which, key, blob)
        if there and blob.size > 0:
            if not is_digest or hashes_to(blob.at, blob.size, key.at):
                return True
            there = False
        if not is_digest and not there:
            return False
        spill[0] = self._spilled(key)
        if spill.at == NULL or spill.size == 0:
            return False
        blob[0] = Slice(spill.at, spill.size)
        return hashes_to(blob.at, blob.size, key.at) if is_digest else self._owns_spill(key, spill.size)

    cdef bytes _get(self, bytes name):
        cdef Slice blob
        cdef Buffer spill = Buffer(NULL, 0)
        try:
            return blob.at[:blob.size] if self._blob(0, slice_of(name), &blob, &spill) else None
        finally:
            free(spill.at)

    cdef list _keys(self):
        cdef sqlite3_stmt* query = NULL
        cdef list found = []
        cdef int code
        sqlite3_prepare_v2(
            self._sqlite.db, "SELECT CAST(digest AS BLOB) FROM blobs WHERE typeof(digest) = 'text' ORDER BY digest", -1, &query, NULL,
        )
        try:
            while True:
                code = sqlite3_step(query)
                if code != SQLITE_ROW:
                    break
                found.append(text_of(Slice(<const char*>sqlite3_column_blob(query, 0), sqlite3_column_bytes(query, 0))))
            if code != SQLITE_DONE:
                raise self._failed()
        finally:
            sqlite3_finalize(query)
        return found

    cdef tuple _probe(self, str ref, bint* keep):
        cdef bytes name = prefixed(b"manifest:", ref)
        cdef Slice manifest
        cdef Buffer spill = Buffer(NULL, 0)
        cdef Answers answers
        if name is None or b"\0" in name:
            return NO_FACTS, False
        try:
            if not self._blob(0, slice_of(name), &manifest, &spill) or not read_answers(manifest, &MANIFEST_SCHEMA, &answers):
                return NO_FACTS, False
            keep[0] = spill.at == NULL  # a spilled manifest may be replaced without a trace in the database
            return self._config(answers.found[DIGEST], string_of(answers.found[MARKER]))
        finally:
            free(spill.at)

    cdef tuple _config(self, Slice digest, str marker):
        cdef Slice config
        cdef Buffer spill = Buffer(NULL, 0)
        cdef Answers answers
        try:
            if not is_sha256(digest) or not self._blob(1, digest, &config, &spill):
                return ImageFacts(marker=marker), False
            if not read_answers(config, &CONFIG_SCHEMA, &answers):
                return ImageFacts(marker=marker), True
            return ImageFacts(os_of(answers.found[OS_NAME]), marker, string_of(answers.found[ISOLATION])), False
        finally:
            free(spill.at)


cdef str database_file(str path):
    if os.path.isdir(path):
        for name in ("blob_cache.sqlite", "blob_cache.redb"):
            if os.path.exists(os.path.join(path, name)):
                return os.path.join(path, name)
    return path


cdef str spill_dir(str path):
    folder, name = os.path.split(path)
    dot = name.rfind(".")
    return os.path.join(folder, f"{name[:dot] if dot > 0 else name}.blobs")


cdef object sidecar_os(str ref, list paths):
    cdef str name = sanitize(ref)
    cdef Buffer raw
    cdef Answers answers
    cdef bytes path
    if name in ("", ".", "..") or "\0" in name:
        return None
    for cache in paths:
        path = os.fsencode(os.path.join(os.path.dirname(cache.rstrip("/")), name, "metadata.json"))
        raw = read_file(PyBytes_AS_STRING(path), MAX_DOCUMENT_BYTES)
        if raw.at == NULL:
            continue
        try:
            if read_answers(Slice(raw.at, raw.size), &SIDECAR_SCHEMA, &answers):
                found = os_of(answers.found[OS_NAME])
                if found is not None:
                    return found
        finally:
            free(raw.at)
    return None


cdef tuple ask(cache, str ref):
    if isinstance(cache, BlobCache):
        return (<BlobCache>cache)._asked(ref)
    with BlobCache(cache) as opened:
        return (<BlobCache>opened)._asked(ref)


def image_facts(str ref not None, caches):
    """What local stores say of an image: sidecars first (OS only), then the caches in order, each fact from the first that has it.

    A cache that cannot be read is passed over. `CacheBusy` only where no OS was found and a busy cache might have it.
    """
    cdef bint os_open, isolation_open = True
    os_ = sidecar_os(ref, [cache.path if isinstance(cache, BlobCache) else os.fspath(cache) for cache in caches])
    marker = isolation = busy = None
    os_open = os_ is None
    for cache in caches:
        try:
            found, unreadable = ask(cache, ref)
        except CacheError as error:
            busy = error if isinstance(error, CacheBusy) else busy
            continue
        if marker is None:
            marker = found.marker
        if os_open:
            os_ = found.os
            os_open = os_ is None and not unreadable
        if isolation_open:
            isolation = found.isolation
            isolation_open = isolation is None and not unreadable
        if marker is not None and not os_open and not isolation_open:
            break
    if os_ is None and os_open and busy is not None:
        raise busy
    return ImageFacts(os_, marker, isolation)
