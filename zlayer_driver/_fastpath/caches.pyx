# cython: language_level=3, auto_pickle=False, autotestdict=False
"""A handle on a blob cache, compiled; `_fastpath_py.caches` has the same functions and answers in plain Python.

A handle is safe across threads because the interpreter lock is held throughout each call, and no Python code that could let go of it runs
between reading a row and using it. It is safe after fork because a child abandons what its parent opened.
"""

from cython cimport final, no_gc_clear
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset

from zlayer_driver._fastpath.digest cimport hashes_to, is_sha256
from zlayer_driver._fastpath.documents cimport answer_of, os_of, string_of
from zlayer_driver._fastpath.files cimport Buffer, is_folder, read_file
from zlayer_driver._fastpath.followed cimport NO_CHANGE, OTHER_FILE, Change, Followed, folder_of, path_bytes
from zlayer_driver._fastpath.grammar cimport Slice, find
from zlayer_driver._fastpath.json cimport CONFIG_SCHEMA, DIGEST, ISOLATION, MANIFEST_SCHEMA, MARKER, OS_NAME, Answers, read_document
from zlayer_driver._fastpath.redb cimport close_redb, open_redb
from zlayer_driver._fastpath.redb_tree cimport GOOD, collect_keys, find_value
from zlayer_driver._fastpath.sqlite cimport (
    LEFTOVER, LIVE, SQLITE_BUSY, SQLITE_LOCKED, SQLITE_NOTADB, SQLITE_PROTOCOL, SQLITE_READONLY, STILL,
    Sqlite, begin_read, close_sqlite, collect_digests, end_read, open_sqlite, owns_spill, select_row,
    sqlite3_errmsg, sqlite3_extended_errcode,
)
from zlayer_driver._fastpath.text cimport checked, encoded, prefixed, read_utf8, slice_of

import os
import shutil
import tempfile
from urllib.parse import quote

from zlayer_driver.errors import CacheBusy, CacheError
from zlayer_driver.model import ImageFacts


cdef int ATTEMPTS = 8
cdef int MAX_BLOB_BYTES = 32 << 20
cdef Py_ssize_t MAX_MEMO = 65536
cdef Py_ssize_t MAX_BATCH = 256  # questions that one snapshot serves: while it is open, a writer's log cannot be begun anew

cdef object NO_FACTS = ImageFacts()
cdef set REDB_FILES = set()  # device and inode of files that were redb, so that SQLite need not look at them first again


cdef bint is_key(Slice name) noexcept nogil:
    if is_sha256(name):
        return True
    return name.size >= 9 and memcmp(name.at, "manifest:", 9) == 0 and find(name.at, name.at + name.size, 0) == NULL


@final
@no_gc_clear
cdef class BlobCache:
    """A read-only handle on a ZLayer blob cache (SQLite or redb, told by content); safe across threads and after fork.

    The handle follows its file: a replaced, grown or checkpointed file is read as it is at the call. Nothing is ever written.
    """

    def __cinit__(self, path):
        self._files = Followed(database_file(os.fspath(path)))
        self._memo, self._learnt = {}, {}
        self.store = folder_of(path_bytes(self._files.path).rstrip(b"/"))
        self.run(OPEN, None)

    def __dealloc__(self):
        self._end()

    @property
    def path(self) -> str:
        return self._files.path

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
        return self.run(GET, key)

    def get_many(self, keys) -> list:
        """The blobs under ``keys``, read from as few committed states as possible without holding a writer back."""
        return self._in_batches(GET_MANY, list(keys))

    def keys(self) -> list:
        """All keys of the cache's table, in byte order."""
        return self.run(KEYS, None)

    def facts(self, str ref not None):
        """What this cache says of an image; nothing where it has no manifest or config, or cannot read them."""
        return self.facts_of(ref)[0]

    def facts_many(self, refs) -> list:
        """The facts of each image, read from as few committed states as possible without holding a writer back."""
        return [(<tuple>answer)[0] for answer in self._in_batches(FACTS_MANY, list(refs))]

    cdef list _in_batches(self, Task task, list asked):
        cdef list found = []
        cdef Py_ssize_t first
        for first in range(0, len(asked), MAX_BATCH):
            found += <list>self.run(task, asked[first:first + MAX_BATCH])
        return found

    cdef tuple facts_of(self, str ref):
        """The facts, and whether a config stands here that cannot be read: then no other cache may answer in its place."""
        return self.run(FACTS, ref)

    cdef object run(self, Task task, object argument):
        """What one committed state of the file says; read again if it changed meanwhile."""
        cdef object answer, failure
        if self._closed:
            raise CacheError(self._files.path, "the handle is closed")
        self._disown()
        for _ in range(ATTEMPTS):
            failure = answer = None
            if self._is_same() and task == FACTS:
                answer = self._memo.get(argument)
                if answer is not None:
                    return answer
            if not self._files.quiet:
                end_read(&self._sqlite)
            try:
                self._open()
                answer = self._read(task, argument)
            except CacheError as error:
                failure = error
            except BaseException:
                end_read(&self._sqlite)
                raise
            if failure is not None or not self._may_keep_snapshot():
                end_read(&self._sqlite)
            if (failure is not None or self._redb.kept == NULL) and not self._held():  # redb's pages prove themselves
                self._drop()
                continue
            if failure is not None:
                self._drop()
                raise failure
            if self._learnt:
                self._remember()
            return answer
        raise CacheBusy(self._files.path, "it changes faster than it can be read")

    cdef object _read(self, Task task, object argument):
        self._learnt.clear()
        if task == OPEN:
            return None
        if (task == GET_MANY or task == FACTS_MANY or self._may_keep_snapshot()) and begin_read(&self._sqlite) < 0:
            raise self._failed()
        if task == GET:
            return self._get(argument)
        if task == FACTS:
            return self._told(argument)
        if task == KEYS:
            return self._keys()
        return [self._get(key) for key in argument] if task == GET_MANY else [self._told(ref) for ref in argument]

    cdef bint _may_keep_snapshot(self) noexcept:
        """Without a log or locks a snapshot holds nobody back, and it is as good as new until something is heard of the file."""
        return self._files.watching and self._files.state.mode == STILL

    cdef tuple _told(self, str ref):
        """What is known of an image, or what the cache says now: then it is kept in case that the state is held."""
        cdef tuple answer = self._memo.get(ref)
        if answer is None:
            answer = self._probe(checked(ref))
            if not self._spilled_manifest:
                self._learnt[ref] = answer
        return answer

    cdef int _remember(self) except -1:
        """Keeps what was learnt for as long as the file tells of no change, if it tells."""
        if self._files.watching and len(self._memo) < MAX_MEMO:
            self._memo.update(self._learnt)
        self._learnt.clear()
        return 0

    cdef void _end(self) noexcept:
        if not self._closed:
            self._closed = True
            if self._files is not None:  # the path was one
                self._drop()
                self._files.end()

    cdef void _disown(self) noexcept:
        """In a child: what its parent opened is the parent's; to close it here could disturb its locks."""
        if self._files.is_inherited():
            memset(&self._sqlite, 0, sizeof(Sqlite))
            close_redb(&self._redb)
            self._files.watching = self._files.alone = False

    cdef void _drop(self) noexcept:
        self._disown()
        close_sqlite(&self._sqlite)
        close_redb(&self._redb)
        self._files.watching = self._files.alone = False

    cdef bint _is_same(self) except -1:
        """Looks at the files; whether what is known of them still counts."""
        cdef Change change
        cdef bint watching
        try:
            change = self._files.look()
        except CacheError:
            self._drop()
            raise
        if change == OTHER_FILE:
            watching = self._files.watching
            self._drop()
            self._files.watching = watching
        if change != NO_CHANGE:
            self._memo.clear()
        return change == NO_CHANGE

    cdef bint _held(self) except -1:
        try:
            return self._files.held()
        except CacheError:
            self._drop()
            raise

    cdef int _open(self) except -1:
        if self._sqlite.db != NULL or self._redb.kept != NULL:
            return 0
        inode = (self._files.state.database.device, self._files.state.database.inode)
        if inode in REDB_FILES:
            if open_redb(&self._redb, PyBytes_AS_STRING(self._files.file)) == GOOD:
                self._files.alone = True
                return 0
            REDB_FILES.discard(inode)
        if self._files.state.mode != LEFTOVER:
            options = {STILL: "immutable=1", LIVE: "readonly_shm=1"}.get(self._files.state.mode, "")
            return self._connect(self._files.file, f"?mode=ro&{options}")
        with tempfile.TemporaryDirectory() as scratch:  # SQLite keeps open what it needs
            copy = os.path.join(scratch, "copy")
            for suffix in ("", "-wal"):
                shutil.copyfile(os.fsdecode(self._files.file) + suffix, copy + suffix)
            return self._connect(copy.encode(), "?mode=rw")

    cdef int _connect(self, bytes path, str options) except -1:
        cdef bytes uri = f"file:{quote(os.path.abspath(path))}{options}".encode()
        cdef int opened = open_sqlite(&self._sqlite, PyBytes_AS_STRING(uri), MAX_BLOB_BYTES)
        if opened == 0:
            raise CacheError(self._files.path, "it has no table «blobs»")
        if opened < 0 and sqlite3_extended_errcode(self._sqlite.db) & 0xFF != SQLITE_NOTADB:
            raise self._failed()
        if opened < 0:
            close_sqlite(&self._sqlite)
            if open_redb(&self._redb, PyBytes_AS_STRING(self._files.file)) != GOOD:
                raise CacheError(self._files.path, self._redb.reason.decode())
            self._files.alone = True
            if len(REDB_FILES) >= 1024:
                REDB_FILES.clear()
            REDB_FILES.add((self._files.state.database.device, self._files.state.database.inode))
        return 0

    cdef object _failed(self):
        """The error that the reader of either format met last."""
        cdef int code
        if self._redb.kept != NULL:
            return CacheError(self._files.path, self._redb.reason.decode())
        code = sqlite3_extended_errcode(self._sqlite.db) & 0xFF
        message = sqlite3_errmsg(self._sqlite.db).decode("utf-8", "replace")
        busy = code in (SQLITE_BUSY, SQLITE_LOCKED, SQLITE_READONLY, SQLITE_PROTOCOL)
        return (CacheBusy if busy else CacheError)(self._files.path, message)

    cdef bint _row(self, int which, Slice key, Slice* row) except -1:
        cdef int found
        if self._redb.kept != NULL:
            found = find_value(&self._redb, self._redb.table.root, key, row, which)
        else:
            found = select_row(&self._sqlite, which, key, row)
        if found < 0:
            raise self._failed()
        return found

    cdef Buffer _spilled(self, Slice key):
        cdef bytes path
        if self._spill_dir is None:
            self._spill_dir = path_bytes(spill_dir(self._files.path))
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
            raise self._failed()
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

    cdef object _get(self, str key):
        cdef Slice name, blob
        cdef Buffer spill = Buffer(NULL, 0)
        if not read_utf8(key, &name) or not is_key(name):
            return None
        try:
            return blob.at[:blob.size] if self._blob(0, name, &blob, &spill) else None
        finally:
            free(spill.at)

    cdef list _keys(self):
        cdef list found = []
        if (collect_keys(&self._redb, found) if self._redb.kept != NULL else collect_digests(&self._sqlite, found)) < 0:
            raise self._failed()
        return found

    cdef tuple _probe(self, str ref):
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
            if not there or not read_document(manifest, &MANIFEST_SCHEMA, &answers):
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
            if not read_document(config, &CONFIG_SCHEMA, &answers):
                return answer_of(None, marker, None, True)
            return answer_of(os_of(answers.found[OS_NAME]), marker, string_of(answers.found[ISOLATION]), False)
        finally:
            free(spill.at)


cdef bytes spill_name(Slice key):
    return key.at[:key.size].replace(b":", b"_").replace(b"/", b"_")


cdef str database_file(str path):
    if is_folder(PyBytes_AS_STRING(path_bytes(path))):
        for name in ("blob_cache.sqlite", "blob_cache.redb"):
            if os.path.exists(os.path.join(path, name)):
                return os.path.join(path, name)
    return path


cdef str spill_dir(str path):
    folder, name = os.path.split(path)
    dot = name.rfind(".")
    return os.path.join(folder, f"{name[:dot] if dot > 0 else name}.blobs")
