"""Python texts as bytes read in place, and what is made of them without an object in between."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memcpy

from zlayer_driver._fastpath.grammar cimport FAULT_FORM, FAULT_NONE, Fault, Parts, Slice, canonical_size, parse_parts, write_canonical


cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size)
    void PyErr_Clear()
    object PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_DATA(object text)
    bint PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)


cdef inline str text_of(Slice text):
    return None if text.at == NULL else PyUnicode_DecodeUTF8(text.at, text.size, "replace")


cdef inline Slice slice_of(bytes text):
    return Slice(PyBytes_AS_STRING(text), len(text))


cdef inline bint read_utf8(object text, Slice* found):
    """The UTF-8 of ``text``, valid as long as it; not where it has lone surrogates."""
    if PyUnicode_IS_ASCII(text):
        found[0] = Slice(<const char*>PyUnicode_DATA(text), PyUnicode_GET_LENGTH(text))
        return True
    found.at = PyUnicode_AsUTF8AndSize(text, &found.size)
    if found.at == NULL:
        PyErr_Clear()
    return found.at != NULL


cdef inline str checked(str ref):
    if ref is None:
        raise TypeError("a reference is text, not None")
    return ref


cdef inline Fault parse_text(str ref, Parts* parts) except? FAULT_FORM:
    cdef Slice text
    return parse_parts(text.at, text.size, parts) if read_utf8(ref, &text) else FAULT_FORM


cdef inline str canonical_name(str ref):
    cdef Parts parts
    cdef str out
    if parse_text(ref, &parts) != FAULT_NONE:
        return ref
    if not PyUnicode_IS_ASCII(ref):
        return spelled(b"", &parts).decode()
    out = PyUnicode_New(canonical_size(&parts), 127)
    write_canonical(&parts, <char*>PyUnicode_DATA(out))
    return out


cdef inline bytes prefixed(bytes prefix, str ref):
    """``prefix`` and the canonical form of ``ref`` in UTF-8, or ``ref`` itself where it does not parse; ``None`` if it is no UTF-8."""
    cdef Parts parts
    return spelled(prefix, &parts) if parse_text(ref, &parts) == FAULT_NONE else encoded(prefix, ref)


cdef inline bytes spelled(bytes prefix, const Parts* parts):
    cdef Py_ssize_t size = len(prefix)
    cdef bytes out = PyBytes_FromStringAndSize(NULL, size + canonical_size(parts))
    memcpy(PyBytes_AS_STRING(out), PyBytes_AS_STRING(prefix), <size_t>size)
    write_canonical(parts, PyBytes_AS_STRING(out) + size)
    return out


cdef inline bytes encoded(bytes prefix, str text):
    """``prefix`` and ``text`` in UTF-8; ``None`` if it is no UTF-8."""
    cdef Slice raw
    cdef Py_ssize_t size = len(prefix)
    cdef bytes out
    if not read_utf8(text, &raw):
        return None
    out = PyBytes_FromStringAndSize(NULL, size + raw.size)
    memcpy(PyBytes_AS_STRING(out), PyBytes_AS_STRING(prefix), <size_t>size)
    memcpy(PyBytes_AS_STRING(out) + size, raw.at, <size_t>raw.size)
    return out


cdef inline str directory_name(str ref):
    """The name that ZLayer gives the folder of a natively built image."""
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
