# cython: language_level=3, auto_pickle=False, autotestdict=False
"""Python values of what manifests, configs and sidecars say."""

from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdlib cimport free, malloc

from zlayer_driver._fastpath.grammar cimport Slice, find
from zlayer_driver._fastpath.scalars cimport text_is, unescape
from zlayer_driver._fastpath.text cimport text_of

from zlayer_driver.model import OS, ImageFacts


cdef object LINUX = OS.LINUX
cdef object WINDOWS = OS.WINDOWS
cdef object DARWIN = OS.DARWIN
cdef dict ANSWERS = {}  # equal answers are one object; emptied when they are many


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


cdef tuple answer_of(object os_, str marker, str isolation, bint unreadable):
    cdef tuple key = (os_, marker, isolation, unreadable)
    cdef tuple answer = ANSWERS.get(key)
    if answer is None:
        if len(ANSWERS) >= 1024:
            ANSWERS.clear()
        answer = ANSWERS[key] = (ImageFacts(os_, marker, isolation), unreadable)
    return answer
