# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Decisions for many requests, compiled; `_fastpath_py.placement` has the same functions and answers in plain Python."""

from cython cimport final
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memset

from zlayer_driver._fastpath.grammar cimport Slice
from zlayer_driver._fastpath.kinds cimport (
    ARCH, FACTS, ISOLATED, LABEL, MARKER, MAX_KEY_BYTES, RUNTIME, SYSTEM, TEXTS, Kept, Kind, Memo, forget, keep, make_kept, prepare, recall,
    write_key,
)
from zlayer_driver._fastpath.lines cimport MAX_COUNTS, Pass, append, count_lines, key_of_job, recall_answer, tell, tell_known
from zlayer_driver._fastpath.text cimport read_utf8, slice_of, text_of

from zlayer_driver import model
from zlayer_driver.errors import DriverError


cdef enum:
    MANY = 1 << 16  # slots of a memo
    FEW = 1 << 10
    BLOCK = 256  # requests that are looked up at once, at most
    FIRST = 16  # and at first, when no kind is known
    SEEN = 1 << 8  # places, of which half are taken


cdef struct Said:
    uint64_t word[TEXTS]  # the first is 0 where there are none


cdef object LABEL_NAME = model.ISOLATION_LABEL


cdef struct Block:  # what of requests decides, and what was told to their kinds
    int count
    Said said[BLOCK]
    int told[BLOCK]  # below 0: this request is asked about


cdef struct Told:  # to all for whom the same objects, or texts of a few bytes, decide
    Said said
    int told


cdef extern from *:
    """
    #include <structmember.h>
    /* Where things of the class `type` have what its descriptor `slot` tells of; 0 where that is no slot of it. */
    static inline Py_ssize_t slot_offset(PyObject *type, PyObject *slot) {
        if (!Py_IS_TYPE(slot, &PyMemberDescr_Type) || (PyObject *)PyDescr_TYPE(slot) != type) return 0;
        const PyMemberDef *member = ((PyMemberDescrObject *)slot)->d_member;
        return member->type == T_OBJECT_EX ? member->offset : 0;
    }
    static inline PyObject *slot_value(PyObject *thing, Py_ssize_t offset) {
        return *(PyObject **)((char *)thing + offset);
    }
    /* An object as a word; of a text of a few bytes the text itself, which is odd, as no address is. */
    static inline uint64_t word_of(PyObject *object) {
        if (!PyUnicode_CheckExact(object) || !PyUnicode_IS_COMPACT_ASCII(object) || PyUnicode_GET_LENGTH(object) > 7)
            return (uint64_t)(uintptr_t)object;
        const unsigned char *text = PyUnicode_DATA(object);
        Py_ssize_t size = PyUnicode_GET_LENGTH(object);
        uint64_t word = 0;
        for (Py_ssize_t i = 0; i < size; i++) word = word << 8 | text[i];
        return word << 8 | (uint64_t)size << 1 | 1;
    }
    """
    Py_ssize_t slot_offset(object type, object slot)
    PyObject* slot_value(object thing, Py_ssize_t offset)
    uint64_t word_of(PyObject* object)
    PyObject* PyDict_GetItemWithError(object mapping, object key) except? NULL


@final
cdef class _Slots:
    """Attributes of things that are mostly of one class; if it has slots for them, they are read where they stand."""

    cdef tuple _names
    cdef object _class
    cdef Py_ssize_t _offset[3]

    def __cinit__(self, *names):
        self._names = names

    cdef inline bint read(self, object thing, PyObject** found) except -1:
        """Borrows the values; not those of a class without slots, nor where one is empty."""
        cdef int i
        if type(thing) is not self._class and not self._learn(type(thing)):
            return False
        for i in range(len(self._names)):
            found[i] = slot_value(thing, self._offset[i])
            if found[i] == NULL:
                return False
        return True

    cdef bint _learn(self, object class_) except -1:
        cdef Py_ssize_t offset[3]
        for i, name in enumerate(self._names):
            offset[i] = slot_offset(class_, getattr(class_, name, None))
            if offset[i] == 0:
                return False
        self._class = class_
        for i in range(len(self._names)):
            self._offset[i] = offset[i]
        return True


cdef _Slots REQUEST = _Slots("runtime", "labels", "platform")
cdef _Slots PLATFORM = _Slots("os", "arch")
cdef _Slots KNOWN = _Slots("os", "marker", "isolation")


cdef bint see(object request, object facts, PyObject** found) except -1:
    """Borrows the objects that decide, in the order of their texts in a key; not where they are no plain ones."""
    cdef PyObject* own[3]
    cdef PyObject* label
    if not REQUEST.read(request, own) or type(<object>own[1]) is not dict or not KNOWN.read(facts, &found[FACTS]):
        return False
    label = PyDict_GetItemWithError(<object>own[1], LABEL_NAME) if <dict>own[1] else NULL
    found[RUNTIME] = own[0]
    found[LABEL] = label if label != NULL else <PyObject*>None
    found[SYSTEM] = found[ARCH] = <PyObject*>None
    return own[2] == <PyObject*>None or PLATFORM.read(<object>own[2], &found[SYSTEM])


cdef inline void note(PyObject** found, Said* said) noexcept:
    cdef int i
    for i in range(TEXTS):
        said.word[i] = word_of(found[i])


cdef void fill(Block* block, list requests, list facts, Py_ssize_t first, int most) except *:
    """What decides for the next requests; no words where it cannot be seen."""
    cdef PyObject* found[TEXTS]
    cdef int i
    block.count = <int>min(most, len(requests) - first)
    for i in range(block.count):
        block.said[i].word[0] = 0
        request, known = requests[first + i], facts[first + i]  # held: comparing labels may run code that takes them out of the lists
        if see(request, known, found):
            note(found, &block.said[i])


cdef Told* place_of(Told* seen, const Said* said) noexcept nogil:
    """Where what was told stands, or is to stand; there is always a free place."""
    cdef uint64_t sum_ = 0
    cdef int i
    for i in range(TEXTS):
        sum_ += said.word[i] * (<uint64_t>0x9E3779B97F4A7C15 * <uint64_t>(2 * i + 1))
    sum_ >>= 40
    while True:
        sum_ &= SEEN - 1
        if seen[sum_].said.word[0] == 0 or memcmp(&seen[sum_].said, said, sizeof(Said)) == 0:
            return &seen[sum_]
        sum_ += 1


cdef void look_up(Block* block, Told* seen) noexcept nogil:
    cdef Told* place
    cdef int i
    for i in range(block.count):
        block.told[i] = -1
        if block.said[i].word[0] != 0:
            place = place_of(seen, &block.said[i])
            if place.said.word[0] != 0:
                block.told[i] = place.told


cdef void write_request(object request, object facts, char* memory, Slice* key) except *:
    """The key of a request's kind; empty where it can have none."""
    cdef Kind kind
    runtime, platform, label = request.runtime, request.platform, request.labels.get(LABEL_NAME)
    system, arch = (None, None) if platform is None else (platform.os, platform.arch)
    os_, marker, isolation = facts.os, facts.marker, facts.isolation
    key[0] = Slice(NULL, 0)
    if (
        says(&kind, RUNTIME, runtime) and says(&kind, LABEL, label) and says(&kind, SYSTEM, system) and says(&kind, ARCH, arch)
        and says(&kind, FACTS, os_) and says(&kind, MARKER, marker) and says(&kind, ISOLATED, isolation)
    ):
        key[0] = write_key(&kind, memory)


cdef inline bint says(Kind* kind, int which, object text) except -1:
    """Notes a text that decides, valid as long as it; not if it cannot be part of a key."""
    if text is None:
        kind.said[which] = Slice(NULL, 0)
        return True
    return isinstance(text, str) and read_utf8(text, &kind.said[which])


cdef class _Chooser:
    """One call of `choose_many`. Kinds are told by texts, and mostly sooner by objects, which are held so that none takes their place."""

    cdef Memo _kinds
    cdef Told* _seen
    cdef object _choose
    cdef list _told, _held

    def __cinit__(self, choose):
        self._choose = choose
        self._told, self._held = [], []
        self._seen = <Told*>calloc(SEEN, sizeof(Told))
        if self._seen == NULL or not prepare(&self._kinds, FEW):
            raise MemoryError

    def __dealloc__(self):
        free(self._seen)
        forget(&self._kinds)

    cdef list decide(self, list requests, list facts):
        cdef list found = []
        cdef Block* block = <Block*>malloc(sizeof(Block))
        cdef Py_ssize_t first = 0
        cdef int i, most = FIRST
        if block == NULL:
            raise MemoryError
        try:
            while first < len(requests):
                fill(block, requests, facts, first, most)
                with nogil:
                    look_up(block, self._seen)
                for i in range(block.count):
                    found.append(self._told[block.told[i]] if block.told[i] >= 0 else self._ask(requests[first + i], facts[first + i]))
                first += block.count
                most = min(2 * most, BLOCK)
        finally:
            free(block)
        return found

    cdef object _ask(self, object request, object facts):
        """What is told to a request; from now on to all for whom the same objects decide."""
        cdef PyObject* found[TEXTS]
        cdef Said said
        cdef Told* place = NULL
        cdef int told, i
        held = []
        if see(request, facts, found):
            note(found, &said)
            place = place_of(self._seen, &said)
            if place.said.word[0] != 0:  # told to an earlier one of the same block
                return self._told[place.told]
            for i in range(TEXTS):
                held.append(<object>found[i])
        told, refused = self._asked(request, facts)
        if told < 0:
            return refused
        if held and len(self._held) < SEEN // 2:
            place = place_of(self._seen, &said)
            place.said, place.told = said, told
            self._held.append(held)
        return self._told[told]

    cdef tuple _asked(self, object request, object facts):
        """Which of those told it is, for all of its kind; or -1 and what was told to this request alone, as to all that have no kind."""
        cdef char memory[MAX_KEY_BYTES]
        cdef Slice key
        cdef Kept* kept
        write_request(request, facts, memory, &key)
        kept = recall(&self._kinds, key) if key.size > 0 else NULL
        if kept != NULL:
            return kept.count, None
        try:
            told = self._choose(request, facts)
        except DriverError as error:  # which names the task
            return -1, error
        kept = make_kept(key, Slice("", 0), <int>len(self._told)) if key.size > 0 else NULL
        if kept == NULL or not keep(&self._kinds, kept):
            free(kept)
            return -1, told
        self._told.append(told)
        return len(self._told) - 1, None


def choose_many(requests, facts, choose) -> list:
    """What ``choose(request, facts)`` says of each request and its image's facts; a `DriverError` stands in the place of what it refuses.

    Requests that agree in runtime, isolation label, platform and facts have one choice: the first is asked about.
    """
    cdef list asked = requests if type(requests) is list else list(requests)  # a copy costs as much as deciding
    cdef list known = facts if type(facts) is list else list(facts)
    if len(asked) != len(known):
        raise ValueError(f"there are {len(asked)} requests and facts of {len(known)} images")
    return (<_Chooser>_Chooser(choose)).decide(asked, known)


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
        if not prepare(&self._images, MANY) or not prepare(&self._answers, MANY):
            raise MemoryError

    def __dealloc__(self):
        forget(&self._images)
        forget(&self._answers)

    @property
    def counts(self) -> list:
        return [self._counts[i] for i in range(MAX_COUNTS)]

    def answer(self, chunk, long long first) -> bytes:
        """The answers, in order, to the lines of ``chunk``, of which the first has the number ``first``."""
        answers = bytearray()
        size = self.answer_into(chunk, first, answers)
        return bytes(memoryview(answers)[:size])

    def answer_into(self, chunk, long long first, bytearray answers not None) -> int:
        """How many of the first bytes of ``answers`` are now the answers to ``chunk``. It grows as needed, and never shrinks."""
        cdef Pass lines
        cdef bint is_all
        cdef Py_buffer read
        memset(&lines, 0, sizeof(Pass))
        PyObject_GetBuffer(chunk, &read, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(answers, &lines.out, PyBUF_WRITABLE)
            lines.at = <const char*>read.buf
            lines.end = lines.at + read.len
            lines.line = first - 1
            while True:
                with nogil:
                    is_all = tell_known(&self._images, &self._answers, &lines)
                if is_all:
                    for i in range(MAX_COUNTS):
                        self._counts[i] += lines.counts[i]
                    return lines.size
                self._learn(&lines)
        finally:
            PyBuffer_Release(&read)
            PyBuffer_Release(&lines.out)

    cdef int _learn(self, Pass* lines) except -1:
        """Answers the line that was missed; what is learnt of it is kept where there is room."""
        cdef Kept* image = recall(&self._images, lines.job.image) if lines.is_plain else NULL
        cdef Kept* fresh = NULL
        cdef Kept* kept = NULL
        if lines.is_plain and image == NULL:
            known = self._know(text_of(lines.job.image))
            if known is not None:
                image = fresh = make_kept(lines.job.image, slice_of(known[0]), known[1])
                if image == NULL:
                    raise MemoryError
        try:
            kept = recall_answer(&self._answers, &lines.job, image) if image != NULL else NULL
            return self._asked(lines, image) if kept == NULL else tell(lines, kept, image)
        finally:
            if fresh != NULL and not keep(&self._images, fresh):
                free(fresh)

    cdef int _asked(self, Pass* lines, const Kept* image) except -1:
        cdef char raw[MAX_KEY_BYTES]
        cdef Slice key = Slice(NULL, 0)
        cdef bytes text
        cdef int counter
        cdef Kept* kept
        if image != NULL:
            key = key_of_job(&lines.job, image, raw)
        text, counter, is_model = self._ask(lines.missed.at[:lines.missed.size], lines.line, key.size > 0)
        if not 0 <= counter < MAX_COUNTS:
            raise IndexError(counter)
        if not is_model:
            lines.counts[counter] += 1
            return append(lines, slice_of(text))
        kept = make_kept(key, slice_of(text), counter)
        if kept == NULL:
            raise MemoryError
        try:
            return tell(lines, kept, image)
        finally:
            if not keep(&self._answers, kept):
                free(kept)


def line_count(chunk) -> int:
    """How many lines end in ``chunk``."""
    cdef Py_buffer read
    cdef long long found
    PyObject_GetBuffer(chunk, &read, PyBUF_SIMPLE)
    with nogil:
        found = count_lines(<const char*>read.buf, read.len)
    PyBuffer_Release(&read)
    return found
