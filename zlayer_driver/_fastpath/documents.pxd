"""Python values of what documents say; see `documents.pyx`."""

from zlayer_driver._fastpath.grammar cimport Slice


cdef object os_of(Slice name)
cdef str string_of(Slice raw)
cdef tuple answer_of(object os_, str marker, str isolation, bint unreadable)
