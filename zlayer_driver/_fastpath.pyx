# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Image references, cache keys and local image facts, compiled; `_fastpath_py` has the same functions and answers in plain Python.

The parts stand in ``_native``: `reference` and `json` read bytes in place, `sqlite` and `redb` walk a cache file, `files`, `digest` help.
A handle is safe across threads because the interpreter lock is held throughout each call, and no Python code that could let go of it runs
between reading a row and using it. It is safe after fork because a child abandons what its parent opened.
"""

from cython cimport final
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport errno
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset, strerror

from zlayer_driver._native.digest cimport hashes_to, is_sha256
from zlayer_driver._native.files cimport (
    Buffer, is_link, read_file, watch_clock_ms, watch_count, watch_folder, watch_forks, watch_handle_closed, watch_handle_opened,
)
from zlayer_driver._native.json cimport (
    CONFIG_SCHEMA, DIGEST, ISOLATION, MANIFEST_SCHEMA, MARKER, MAX_DOCUMENT_BYTES, OS_NAME, SIDECAR_SCHEMA,
    Answers, Schema, read_document, text_is, unescape,
)
from zlayer_driver._native.place cimport (
    AT_END, MAX_COUNTS, MAX_KEY_BYTES, MISSED, NO_MEMORY, Ending, Kept, Memo, Pass, append, count_lines, forget, keep, make_kept, prepare,
    recall, recall_answer, tell, tell_known, write_key,
)
from zlayer_driver._native.reference cimport (
    FAULT_ALGORITHM, FAULT_FORM, FAULT_LENGTH, FAULT_NONE,
    Fault, Parts, Slice, canonical_size, find, parse_parts, write_canonical,
)
from zlayer_driver._native.redb cimport close_redb, open_redb
from zlayer_driver._native.redb_tree cimport GOOD, MAX_DEPTH, Node, Redb, Root, Shape, child_of, find_value, key_of, read_node, rewind
from zlayer_driver._native.sqlite cimport (
    LEFTOVER, LIVE, SQLITE_BUSY, SQLITE_DONE, SQLITE_LOCKED, SQLITE_NOTADB, SQLITE_PROTOCOL, SQLITE_READONLY, SQLITE_ROW, STILL,
    Sqlite, State, close_sqlite, end_read, observe, open_sqlite, owns_spill, same_file, same_state, select_row,
    sqlite3_column_blob, sqlite3_column_bytes, sqlite3_errmsg, sqlite3_extended_errcode, sqlite3_finalize, sqlite3_prepare_v2,
    sqlite3_step, sqlite3_stmt, unguarded,
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


cdef int ATTEMPTS = 8
cdef int MAX_BLOB_BYTES = 32 << 20
cdef Py_ssize_t MAX_MEMO = 65536
cdef int WATCH_AFTER_LOOKS = 8  # who asks once or twice does not pay for a watch, whose end takes the kernel milliseconds
cdef long long LOOK_EVERY_MS = 250  # also when nothing was heard: a link or folder further up may have changed

cdef object LINUX = OS.LINUX
cdef object WINDOWS = OS.WINDOWS
cdef object DARWIN = OS.DARWIN
cdef object NO_FACTS = ImageFacts()
cdef set REDB_FILES = set()  # device and inode of files that were redb, so that SQLite need not look at them first again
cdef dict ANSWERS = {}  # equal answers are one object; emptied when they are many

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
    if not prefix and PyUnicode_IS_ASCII(ref):
        return PyBytes_FromStringAndSize(<const char*>PyUnicode_DATA(ref), len(ref))
    try:
        return prefix + ref.encode()
    except UnicodeEncodeError:
        return None


cdef str directory_name(str ref):
    cdef Py_ssize_t i
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
        out[i] = c"_" if (text[i] == c"/") | (text[i] == c":") | (text[i] == c"@") else text[i]
    return name


def sanitize(str ref not None) -> str:
    """The directory name under which ZLayer keeps a natively built image."""
    return directory_name(ref)


def sanitize_many(refs) -> list:
    cdef str ref
    return [directory_name(checked(ref)) for ref in refs]


cdef inline str checked(str ref):
    if ref is None:
        raise TypeError("a reference is text, not None")
    return ref


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


cdef str canonical_name(str ref):
    cdef Parts parts
    cdef str out
    if parse_text(ref, &parts) != FAULT_NONE:
        return ref
    if not PyUnicode_IS_ASCII(ref):
        return prefixed(b"", ref).decode()
    out = PyUnicode_New(canonical_size(&parts), 127)
    write_canonical(&parts, <char*>PyUnicode_DATA(out))
    return out


def canonical(str ref not None) -> str:
    """The one spelling of a reference that all caches use; a text that is no reference stays as it is."""
    return canonical_name(ref)


def canonical_many(refs) -> list:
    cdef str ref
    return [canonical_name(checked(ref)) for ref in refs]


def cache_keys(str ref not None) -> tuple:
    """The blob cache's keys for an image's manifest, its manifest digest, and its name as typed."""
    name = canonical_name(ref)
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


cdef bint is_key(Slice name) noexcept nogil:
    if is_sha256(name):
        return True
    return name.size >= 9 and memcmp(name.at, "manifest:", 9) == 0 and find(name.at, name.at + name.size, 0) == NULL


cdef bytes path_bytes(str path):
    encoded_path = os.fsencode(path)
    if b"\0" in encoded_path:
        raise CacheError(path, "its name has a NUL")
    return encoded_path


cdef enum Task:
    OPEN
    GET
    KEYS
    FACTS


@final
cdef class BlobCache:
    """A read-only handle on a ZLayer blob cache (SQLite or redb, told by content); safe across threads and after fork.

    The handle follows its file: a replaced, grown or checkpointed file is read as it is at the call. Nothing is ever written.
    """

    cdef readonly str path
    cdef bytes _store, _file, _folder, _wal, _shm, _journal, _spill_dir
    cdef Sqlite _sqlite
    cdef Redb _redb
    cdef State _state  # of the files, when they were last looked at
    cdef dict _memo  # reference -> (facts, unreadable), as of `_state`
    cdef unsigned long _forks, _events
    cdef long long _looked_ms, _located_ms
    cdef int _looks
    cdef bint _watching, _spilled_manifest, _closed

    def __cinit__(self, path):
        watch_handle_opened()
        self._memo = {}
        self._forks = watch_forks
        self.path = database_file(os.fspath(path))
        self._store = path_bytes(os.path.dirname(self.path.rstrip("/")))
        self._run(OPEN, None)

    def __dealloc__(self):
        self._end()

    @property
    def format(self) -> str:
        return "redb" if self._redb.kept != NULL else "sqlite"

    def close(self) -> None:
        self._end()

    def __enter__(self) -> BlobCache:
        return self

    def __exit__(self, kind, error, trace) -> None:
        self._end()

    def get(self, str key not None):
        """The blob under ``sha256:…`` or ``manifest:…``; what does not hash to its digest counts as absent."""
        cdef bytes name = encoded(b"", key)
        return self._run(GET, name if name is not None and is_key(slice_of(name)) else None)

    def keys(self) -> list:
        """All keys of the cache's table, in byte order."""
        return self._run(KEYS, None)

    def facts(self, str ref not None):
        """What this cache says of an image; nothing where it has no manifest or config, or cannot read them."""
        return (<tuple>self._run(FACTS, ref))[0]

    cdef object _run(self, Task task, object argument):
        """What one committed state of the file says; read again if it changed meanwhile."""
        cdef object answer, failure
        if self._closed:
            raise CacheError(self.path, "the handle is closed")
        for _ in range(ATTEMPTS):
            failure = answer = None
            if not self._unchanged():
                self._memo.clear()
            elif task == FACTS:
                answer = self._memo.get(argument)
                if answer is not None:
                    return answer
            try:
                self._open()
                answer = self._do(task, argument)
            except CacheError as error:
                failure = error
            end_read(&self._sqlite)
            if (failure is not None or self._redb.kept == NULL) and not self._held():  # redb's pages prove themselves
                self._drop()
                continue
            if failure is not None:
                self._drop()
                raise failure
            if task == FACTS and self._watching and not self._spilled_manifest and len(self._memo) < MAX_MEMO:
                self._memo[argument] = answer
            return answer
        raise CacheBusy(self.path, "it changes faster than it can be read")

    cdef object _do(self, Task task, object argument):
        if task == GET:
            return None if argument is None else self._get(argument)
        if task == KEYS:
            return self._redb_keys() if self._redb.kept != NULL else self._sqlite_keys()
        return self._probe(argument) if task == FACTS else None

    cdef void _end(self) noexcept:
        if not self._closed:
            self._closed = True
            self._drop()
            watch_handle_closed()

    cdef void _drop(self) noexcept:
        if self._forks == watch_forks:
            close_sqlite(&self._sqlite)
        else:  # the parent's: to close it here could disturb its locks
            memset(&self._sqlite, 0, sizeof(Sqlite))
        close_redb(&self._redb)
        self._forks = watch_forks
        self._watching = False

    cdef bint _unchanged(self) except -1:
        """Looks at the files, unless there was nothing to hear; whether they are as they were at the last look."""
        cdef State before = self._state
        cdef long long now_ms = watch_clock_ms()
        cdef bint quiet
        if self._forks != watch_forks:
            self._drop()
        quiet = self._watching and watch_count() == self._events
        if quiet and now_ms - self._looked_ms < LOOK_EVERY_MS:
            return True
        if self._file is None or now_ms - self._located_ms >= LOOK_EVERY_MS:
            self._locate()
            self._located_ms = now_ms
        self._looks += 1
        self._watching = self._looks > WATCH_AFTER_LOOKS and watch_folder(PyBytes_AS_STRING(self._folder))
        self._events = watch_count() if self._watching else 0
        self._looked_ms = now_ms
        self._observe(&self._state)
        if same_state(&before, &self._state) and (quiet or unguarded(self._state.mode)):
            return True
        if (
            unguarded(self._state.mode) or before.mode != self._state.mode
            or not same_file(&before.database, &self._state.database) or not same_file(&before.wal, &self._state.wal)
        ):
            watching = self._watching
            self._drop()
            self._watching = watching
        return False

    cdef int _locate(self) except -1:
        """Where the database lies now; SQLite keeps its logs beside the file itself, not beside a link to it."""
        cdef bytes file = path_bytes(self.path)
        if not file.startswith(b"/") or is_link(PyBytes_AS_STRING(file)):
            file = os.path.realpath(file)
        if file == self._file:
            return 0
        self._file = file
        self._folder = os.path.dirname(self._file)
        self._wal, self._shm, self._journal = self._file + b"-wal", self._file + b"-shm", self._file + b"-journal"
        return 0

    cdef int _observe(self, State* state) except -1:
        cdef int there = observe(
            PyBytes_AS_STRING(self._file), PyBytes_AS_STRING(self._wal), PyBytes_AS_STRING(self._shm), PyBytes_AS_STRING(self._journal),
            state,
        )
        if there <= 0:
            self._drop()
            raise CacheError(self.path, "no such file" if there == 0 else strerror(errno).decode())
        return 0

    cdef bint _held(self) except -1:
        """Whether all that was read since `_unchanged` was one committed state."""
        cdef State now
        if not unguarded(self._state.mode) or (self._watching and watch_count() == self._events):
            return True
        self._observe(&now)
        return same_state(&now, &self._state)

    cdef int _open(self) except -1:
        if self._sqlite.db != NULL or self._redb.kept != NULL:
            return 0
        inode = (self._state.database.device, self._state.database.inode)
        if inode in REDB_FILES:
            if open_redb(&self._redb, PyBytes_AS_STRING(self._file)) == GOOD:
                return 0
            REDB_FILES.discard(inode)
        if self._state.mode != LEFTOVER:
            options = {STILL: "immutable=1", LIVE: "readonly_shm=1"}.get(self._state.mode, "")
            return self._connect(self._file, f"?mode=ro&{options}")
        with tempfile.TemporaryDirectory() as scratch:  # SQLite keeps open what it needs
            copy = os.path.join(scratch, "copy")
            for suffix in ("", "-wal"):
                shutil.copyfile(os.fsdecode(self._file) + suffix, copy + suffix)
            return self._connect(copy.encode(), "?mode=rw")

    cdef int _connect(self, bytes path, str options) except -1:
        cdef bytes uri = f"file:{quote(os.path.abspath(path))}{options}".encode()
        cdef int opened = open_sqlite(&self._sqlite, PyBytes_AS_STRING(uri), MAX_BLOB_BYTES)
        if opened == 0:
            raise CacheError(self.path, "it has no table «blobs»")
        if opened < 0 and sqlite3_extended_errcode(self._sqlite.db) & 0xFF != SQLITE_NOTADB:
            raise self._sqlite_failed()
        if opened < 0:
            close_sqlite(&self._sqlite)
            if open_redb(&self._redb, PyBytes_AS_STRING(self._file)) != GOOD:
                raise self._redb_failed()
            if len(REDB_FILES) >= 1024:
                REDB_FILES.clear()
            REDB_FILES.add((self._state.database.device, self._state.database.inode))
        return 0

    cdef object _sqlite_failed(self):
        cdef int code = sqlite3_extended_errcode(self._sqlite.db) & 0xFF
        message = sqlite3_errmsg(self._sqlite.db).decode("utf-8", "replace")
        busy = code in (SQLITE_BUSY, SQLITE_LOCKED, SQLITE_READONLY, SQLITE_PROTOCOL)
        return (CacheBusy if busy else CacheError)(self.path, message)

    cdef object _redb_failed(self):
        return CacheError(self.path, self._redb.reason.decode())

    cdef bint _row(self, int which, Slice key, Slice* row) except -1:
        cdef int found
        if self._redb.kept != NULL:
            found = find_value(&self._redb, self._redb.table.root, key, row, which)
            if found < 0:
                raise self._redb_failed()
            return found
        found = select_row(&self._sqlite, which, key, row)
        if found < 0:
            raise self._sqlite_failed()
        return found

    cdef Buffer _spilled(self, Slice key):
        cdef bytes path
        if self._spill_dir is None:
            self._spill_dir = path_bytes(spill_dir(self.path))
        path = self._spill_dir + b"/" + spill_name(key)
        return read_file(PyBytes_AS_STRING(path), MAX_BLOB_BYTES)

    cdef bint _owns_spill(self, Slice key, Py_ssize_t size) except -1:
        cdef bytes text = key.at[:key.size]
        cdef bytes name = spill_name(key)
        cdef Py_ssize_t shared = 9  # names that share a file agree up to the first separator behind "manifest:"
        while shared < len(text) and text[shared] not in b"_/:":
            shared += 1
        low = text[:shared]
        high = low + b"\xf4\x8f\xbf\xbf"
        found = owns_spill(&self._sqlite, key, slice_of(low), slice_of(high), PyBytes_AS_STRING(name), size)
        if found < 0:
            raise self._sqlite_failed()
        return found

    cdef bint _blob(self, int which, Slice key, Slice* blob, Buffer* spill) except -1:
        """The bytes under a key, verified; valid until the read ends, those of ``spill`` until the caller frees it."""
        cdef bint is_digest = is_sha256(key)
        cdef bint there = self._row(which, key, blob)
        if there and blob.size > 0:
            if not is_digest or hashes_to(blob.at, blob.size, key.at):
                return True
        elif not is_digest and (not there or self._redb.kept != NULL):
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

    cdef list _sqlite_keys(self):
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
                raise self._sqlite_failed()
        finally:
            sqlite3_finalize(query)
        return found

    cdef list _redb_keys(self):
        cdef list found = []
        rewind(&self._redb)
        self._collect(self._redb.table.root, found, 0)
        return found

    cdef int _collect(self, Root root, list found, int depth) except -1:
        cdef Node node
        cdef unsigned char* raw = NULL
        cdef uint32_t i
        if not root.there:
            return 0
        if depth == MAX_DEPTH:
            raise CacheError(self.path, "a tree is too deep")
        if read_node(&self._redb, &root, Shape(-1, -1), &node, &raw) != GOOD:
            raise self._redb_failed()
        try:
            for i in range(node.count + (not node.is_leaf)):
                if node.is_leaf:
                    found.append(text_of(key_of(&node, i)))
                else:
                    self._collect(child_of(&node, i), found, depth + 1)
        finally:
            free(raw)
        return 0

    cdef tuple _probe(self, str ref):
        """The facts, and whether a config stands here that cannot be read: then no other cache may answer in its place."""
        cdef bytes name = prefixed(b"manifest:", ref)
        cdef Slice manifest
        cdef Buffer spill = Buffer(NULL, 0)
        cdef Answers answers
        cdef char digest[71]
        cdef bint there
        self._spilled_manifest = False
        if name is None or b"\0" in name:
            return NO_FACTS, False
        try:
            there = self._blob(0, slice_of(name), &manifest, &spill)
            if not there and self._redb.kept != NULL:  # ZLayer's redb era kept manifests by the name as typed
                name = encoded(b"manifest:", ref)
                there = self._blob(0, slice_of(name), &manifest, &spill)
            # A spilled manifest may be replaced without a trace in the database, so that it is not remembered.
            self._spilled_manifest = spill.at != NULL
            if not there or not read_answers(manifest, &MANIFEST_SCHEMA, &answers):
                return NO_FACTS, False
            marker = string_of(answers.found[MARKER])
            if not is_sha256(answers.found[DIGEST]):
                return answer_of(None, marker, None, False)
            memcpy(digest, answers.found[DIGEST].at, 71)  # the page that it stands on may go when the config is read
            return self._config(Slice(&digest[0], 71), marker)
        finally:
            free(spill.at)

    cdef tuple _config(self, Slice digest, str marker):
        cdef Slice config
        cdef Buffer spill = Buffer(NULL, 0)
        cdef Answers answers
        cdef bint there = False
        try:
            try:
                there = self._blob(1, digest, &config, &spill)
            except CacheBusy:
                raise
            except CacheError:  # a damaged page: what the manifest says still holds
                pass
            if not there:
                return answer_of(None, marker, None, False)
            if not read_answers(config, &CONFIG_SCHEMA, &answers):
                return answer_of(None, marker, None, True)
            return answer_of(os_of(answers.found[OS_NAME]), marker, string_of(answers.found[ISOLATION]), False)
        finally:
            free(spill.at)


cdef tuple answer_of(os_, str marker, str isolation, bint unreadable):
    cdef tuple key = (os_, marker, isolation, unreadable)
    cdef tuple answer = ANSWERS.get(key)
    if answer is None:
        if len(ANSWERS) >= 1024:
            ANSWERS.clear()
        answer = ANSWERS[key] = (ImageFacts(os_, marker, isolation), unreadable)
    return answer


cdef bytes spill_name(Slice key):
    return key.at[:key.size].replace(b":", b"_").replace(b"/", b"_")


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


cdef bytes store_of(cache):
    """The folder in which a cache and the images built beside it lie, with its slash; empty for the current one."""
    cdef bytes folder
    if isinstance(cache, BlobCache):
        folder = (<BlobCache>cache)._store
    else:
        folder = os.path.dirname(os.fsencode(cache).rstrip(b"/"))
    return folder + b"/" if folder else folder


cdef object sidecar_os(str ref, caches):
    cdef bytes name = encoded(b"", directory_name(ref))
    cdef bytes path
    cdef Buffer raw
    cdef Answers answers
    if name is None or name in (b"", b".", b".."):
        return None
    name += b"/metadata.json"
    for cache in caches:
        path = store_of(cache) + name
        if b"\0" in path:
            continue
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
        return (<BlobCache>cache)._run(FACTS, ref)
    with BlobCache(cache) as opened:
        return (<BlobCache>opened)._run(FACTS, ref)


def image_facts(str ref not None, caches):
    """What local stores say of an image: sidecars first (OS only), then the caches in order, each fact from the first that has it.

    A cache that cannot be read is passed over. `CacheBusy` only where no OS was found and a busy cache might have it.
    """
    cdef bint os_open, isolation_open = True
    os_ = sidecar_os(ref, caches)
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


@final
cdef class JobLines:
    """Answers chunks of job lines; threads may share it.

    ``know(image)`` gives an image's canonical name and a number that stands for all that is known of it, or ``None``.
    ``ask(line, number, plain)`` tells the rest: the answer's bytes, the counter to add to, and whether these bytes are a model. All plain
    lines with the same runtime, label, platform and number of facts have this answer, with the id where the model has a byte 1, the line's
    number where it has a byte 2, and the image's canonical name where it has a byte 3.
    """

    cdef Memo _images, _answers
    cdef long long _counts[MAX_COUNTS]
    cdef object _ask, _know

    def __cinit__(self, ask, know):
        self._ask = ask
        self._know = know
        if not prepare(&self._images) or not prepare(&self._answers):
            raise MemoryError

    def __dealloc__(self):
        forget(&self._images)
        forget(&self._answers)

    @property
    def counts(self) -> list:
        return [self._counts[i] for i in range(MAX_COUNTS)]

    def answer(self, bytes chunk not None, long long first) -> bytes:
        """The answers, in order, to the lines of ``chunk``, of which the first has the number ``first``."""
        cdef Pass lines
        cdef Ending ending
        memset(&lines, 0, sizeof(Pass))
        lines.at = PyBytes_AS_STRING(chunk)
        lines.end = lines.at + len(chunk)
        lines.line = first - 1
        try:
            while True:
                with nogil:
                    ending = tell_known(&self._images, &self._answers, &lines)
                if ending == NO_MEMORY or (ending == MISSED and not self._learn(&lines)):
                    raise MemoryError
                if ending == AT_END:
                    for i in range(MAX_COUNTS):
                        self._counts[i] += lines.counts[i]
                    return lines.out[:lines.size]
        finally:
            free(lines.out)

    cdef bint _learn(self, Pass* lines) except -1:
        """Answers the line that was missed; what is learnt of it is kept where there is room."""
        cdef Kept* image = recall(&self._images, lines.job.image) if lines.is_plain else NULL
        cdef Kept* fresh = NULL
        cdef Kept* kept = NULL
        cdef bint told
        if lines.is_plain and image == NULL:
            known = self._know(text_of(lines.job.image))
            if known is not None:
                image = fresh = make_kept(lines.job.image, slice_of(known[0]), known[1])
                if image == NULL:
                    return False
        try:
            kept = recall_answer(&self._answers, &lines.job, image) if image != NULL else NULL
            told = self._asked(lines, image) if kept == NULL else tell(lines, kept, image)
        finally:
            if fresh != NULL and not keep(&self._images, fresh):
                free(fresh)
        return told

    cdef bint _asked(self, Pass* lines, const Kept* image) except -1:
        cdef char key[MAX_KEY_BYTES]
        cdef bytes text
        cdef int counter
        cdef Kept* kept
        cdef bint told
        text, counter, is_model = self._ask(lines.missed.at[:lines.missed.size], lines.line, image != NULL)
        if not 0 <= counter < MAX_COUNTS:
            raise IndexError(counter)
        if not is_model:
            lines.counts[counter] += 1
            return append(lines, slice_of(text))
        kept = make_kept(write_key(&lines.job, image.count, key), slice_of(text), counter)
        told = kept != NULL and tell(lines, kept, image)
        if kept != NULL and not keep(&self._answers, kept):
            free(kept)
        return told


def line_count(bytes chunk not None) -> int:
    """How many lines end in ``chunk``."""
    cdef const char* at = PyBytes_AS_STRING(chunk)
    cdef Py_ssize_t size = len(chunk)
    cdef long long found
    with nogil:
        found = count_lines(at, size)
    return found
