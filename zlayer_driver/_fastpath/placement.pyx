# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Decisions for many requests, compiled; `_fastpath_py.placement` has the same functions and answers in plain Python."""

from cython cimport final
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from zlayer_driver._fastpath.grammar cimport Slice
from zlayer_driver._fastpath.kinds cimport (
    ARCH, FACTS, ISOLATED, LABEL, MARKER, MAX_KEY_BYTES, RUNTIME, SYSTEM, Kept, Kind, Memo, forget, keep, make_kept, prepare, recall,
    write_key,
)
from zlayer_driver._fastpath.lines cimport (
    AT_END, MAX_COUNTS, MISSED, NO_MEMORY, Ending, Pass, append, count_lines, key_of_job, recall_answer, tell, tell_known,
)
from zlayer_driver._fastpath.text cimport read_utf8, slice_of, text_of

from zlayer_driver import model
from zlayer_driver.errors import DriverError


cdef enum:
    MANY = 1 << 16  # slots of a memo
    FEW = 1 << 12
    BLOCK = 512  # requests that are looked up at once
    BLOCK_BYTES = 1 << 16


cdef object LABEL_NAME = model.ISOLATION_LABEL


cdef struct Block:  # keys of requests, and what was told to their kinds
    int count
    Py_ssize_t size
    Slice key[BLOCK]  # empty: this request is asked about whatever was told to others
    Kept* told[BLOCK]
    char memory[BLOCK_BYTES]


cdef extern from *:
    """
    #include <structmember.h>
    /* What stands in a slot of `thing`, borrowed; NULL where `slot` is none of its class, or empty. */
    static inline PyObject *slot_value(PyObject *thing, PyObject *slot) {
        if (!Py_IS_TYPE(slot, &PyMemberDescr_Type) || !Py_IS_TYPE(thing, PyDescr_TYPE(slot))) return NULL;
        const PyMemberDef *member = ((PyMemberDescrObject *)slot)->d_member;
        return member->type == T_OBJECT_EX ? *(PyObject **)((char *)thing + member->offset) : NULL;
    }
    """
    PyObject* slot_value(object thing, object slot)


@final
cdef class _Attribute:
    """An attribute of things that are mostly of one class; if that has slots, it is not searched for each time."""

    cdef object _name, _slot

    def __cinit__(self, name):
        self._name = name

    cdef inline object of(self, object thing):
        cdef PyObject* found = slot_value(thing, self._slot)
        return <object>found if found != NULL else self._search(thing)

    cdef object _search(self, object thing):
        self._slot = getattr(type(thing), self._name, None)
        return getattr(thing, self._name)


cdef _Attribute RUNTIME_OF = _Attribute("runtime")
cdef _Attribute LABELS_OF = _Attribute("labels")
cdef _Attribute PLATFORM_OF = _Attribute("platform")
cdef _Attribute SYSTEM_OF = _Attribute("os")
cdef _Attribute ARCH_OF = _Attribute("arch")
cdef _Attribute OS_OF = _Attribute("os")
cdef _Attribute MARKER_OF = _Attribute("marker")
cdef _Attribute ISOLATION_OF = _Attribute("isolation")


cdef inline bint says(Kind* kind, int which, object text) except -1:
    """Notes a text that decides; not if it cannot be part of a key."""
    if text is None:
        kind.said[which] = Slice(NULL, 0)
        return True
    return isinstance(text, str) and read_utf8(text, &kind.said[which])


cdef bint read_kind(object request, object facts, Kind* kind) except -1:
    """What of a request and the facts of its image decides, valid as long as they; not if it can be no key."""
    cdef object labels = LABELS_OF.of(request)
    cdef object platform = PLATFORM_OF.of(request)
    cdef object label = None
    if type(labels) is not dict:
        label = labels.get(LABEL_NAME)
    elif <dict>labels:
        label = (<dict>labels).get(LABEL_NAME)
    return (
        says(kind, RUNTIME, RUNTIME_OF.of(request)) and says(kind, LABEL, label)
        and says(kind, SYSTEM, None if platform is None else SYSTEM_OF.of(platform))
        and says(kind, ARCH, None if platform is None else ARCH_OF.of(platform))
        and says(kind, FACTS, OS_OF.of(facts)) and says(kind, MARKER, MARKER_OF.of(facts)) and says(kind, ISOLATED, ISOLATION_OF.of(facts))
    )


cdef int fill(Block* block, list requests, list facts, Py_ssize_t first) except -1:
    """Keys of as many requests as there is room for."""
    cdef Kind kind
    block.count = 0
    block.size = 0
    while block.count < BLOCK and first + block.count < len(requests) and block.size + MAX_KEY_BYTES <= BLOCK_BYTES:
        block.key[block.count] = Slice(NULL, 0)
        if read_kind(requests[first + block.count], facts[first + block.count], &kind):
            block.key[block.count] = write_key(&kind, &block.memory[block.size])
        block.size += block.key[block.count].size
        block.count += 1
    return 0


cdef void look_up(Block* block, const Memo* kinds) noexcept nogil:
    cdef int i
    for i in range(block.count):
        block.told[i] = recall(kinds, block.key[i]) if block.key[i].size > 0 else NULL


cdef class _Chooser:
    """One call of `choose_many`."""

    cdef Memo _kinds
    cdef object _choose
    cdef list _told

    def __cinit__(self, choose):
        self._choose = choose
        self._told = []
        if not prepare(&self._kinds, FEW):
            raise MemoryError

    def __dealloc__(self):
        forget(&self._kinds)

    cdef list decide(self, list requests, list facts):
        cdef list found = []
        cdef Block* block = <Block*>malloc(sizeof(Block))
        cdef int i
        if block == NULL:
            raise MemoryError
        try:
            while len(found) < len(requests):
                fill(block, requests, facts, len(found))
                with nogil:
                    look_up(block, &self._kinds)
                for i in range(block.count):
                    if block.told[i] != NULL:
                        found.append(self._told[block.told[i].count])
                    else:
                        found.append(self._ask(requests[len(found)], facts[len(found)], block.key[i]))
        finally:
            free(block)
        return found

    cdef object _ask(self, object request, object facts, Slice key):
        """What is told to a request; for all of its kind, unless it is an error, for that names the task."""
        cdef Kept* kept = recall(&self._kinds, key) if key.size > 0 else NULL
        cdef object told
        if kept != NULL:  # told to an earlier one of the same block
            return self._told[kept.count]
        try:
            told = self._choose(request, facts)
        except DriverError as error:
            return error
        kept = make_kept(key, Slice("", 0), <int>len(self._told)) if key.size > 0 else NULL
        if kept != NULL and keep(&self._kinds, kept):
            self._told.append(told)
        else:
            free(kept)
        return told


def choose_many(requests, facts, choose) -> list:
    """What ``choose(request, facts)`` says of each request and its image's facts; a `DriverError` stands in the place of what it refuses.

    Requests that agree in runtime, isolation label, platform and facts have one choice: the first is asked about.
    """
    cdef list asked = list(requests)
    cdef list known = list(facts)
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
                    return self._written(&lines)
        finally:
            free(lines.out)

    cdef bytes _written(self, const Pass* lines):
        cdef bytes text = PyBytes_FromStringAndSize(NULL, lines.size)
        cdef char* at = PyBytes_AS_STRING(text)
        with nogil:
            memcpy(at, lines.out, <size_t>lines.size)
        return text

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
        cdef char raw[MAX_KEY_BYTES]
        cdef Slice key = Slice(NULL, 0)
        cdef bytes text
        cdef int counter
        cdef Kept* kept
        cdef bint told
        if image != NULL:
            key = key_of_job(&lines.job, image, raw)
        text, counter, is_model = self._ask(lines.missed.at[:lines.missed.size], lines.line, key.size > 0)
        if not 0 <= counter < MAX_COUNTS:
            raise IndexError(counter)
        if not is_model:
            lines.counts[counter] += 1
            return append(lines, slice_of(text))
        kept = make_kept(key, slice_of(text), counter)
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
