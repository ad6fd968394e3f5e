"""JSON read in place against a table of fields: no object per value, one pass, depth and size bounded.

The rules are those of the readable twin (`_fastpath_py.documents`): at most 4 MiB and 127 levels; a known field has its type and stands
once, unknown ones may hold anything.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset, strlen

from zlayer_driver._fastpath.grammar cimport Slice
from zlayer_driver._fastpath.scalars cimport Reader, read_integer, read_text, skip_scalar, skip_space, take, take_word, text_is


cdef extern from "zlayer_driver/_fastpath/schema.h" nogil:
    const int MAX_DOCUMENT_BYTES, MAX_DEPTH, NO_ANSWER
    ctypedef enum Kind:
        TEXT, TEXTS, TEXT_MAP, ANY_MAP, INTEGER, STRUCT, STRUCTS
    ctypedef struct Schema
    ctypedef struct Field:
        const char* name
        int size
        Kind kind
        bint required
        int answer
        const char* key
        int64_t low
        uint64_t high
        const Schema* schema
    ctypedef struct Schema:
        int count
        const Field* fields
    const Schema MANIFEST_SCHEMA, CONFIG_SCHEMA, SIDECAR_SCHEMA


cdef enum:
    DIGEST = 0
    MARKER = 1
    OS_NAME = 2
    ISOLATION = 3


cdef struct Answers:
    Slice found[4]  # raw JSON text between the quotes; at == NULL: null or absent


cdef inline bint enter(Reader* r, char bracket) noexcept nogil:
    r.depth += 1
    return r.depth <= MAX_DEPTH and take(r, bracket)


cdef inline bint skip_value(Reader* r) noexcept nogil:
    """Consumes any JSON value and the space after it."""
    if r.at == r.end:
        return False
    if r.at[0] == c"{":
        return read_object(r, NULL, NULL)
    if r.at[0] == c"[":
        return read_array(r, NULL)
    return skip_scalar(r)


cdef inline bint read_array(Reader* r, const Field* field) noexcept nogil:
    cdef bint good
    cdef Slice ignored
    if not enter(r, c"["):
        return False
    if not take(r, c"]"):
        while True:
            if field == NULL:
                good = skip_value(r)
            elif field.kind == STRUCTS:
                good = read_object(r, field.schema, NULL)
            else:
                good = read_text(r, &ignored)
            if not good:
                return False
            if take(r, c"]"):
                break
            if not take(r, c","):
                return False
    r.depth -= 1
    return True


cdef inline bint read_field(Reader* r, const Field* field) noexcept nogil:
    cdef Slice text
    if not field.required and take_word(r, "null", 4):
        return True
    if field.kind == TEXT:
        if not read_text(r, &text):
            return False
        if field.answer != NO_ANSWER:
            (<Answers*>r.answers).found[field.answer] = text
        return True
    if field.kind == INTEGER:
        return read_integer(r, field.low, field.high)
    if field.kind == STRUCT:
        return read_object(r, field.schema, NULL)
    if field.kind == TEXT_MAP:
        return read_object(r, NULL, field)
    if field.kind == ANY_MAP:
        return read_object(r, NULL, NULL)
    return read_array(r, field)


cdef inline bint read_member(Reader* r, const Schema* schema, const Field* texts, uint32_t* seen) noexcept nogil:
    cdef Slice key, value
    cdef int i
    if not read_text(r, &key) or not take(r, c":"):
        return False
    if texts != NULL:
        if not read_text(r, &value):
            return False
        if texts.answer != NO_ANSWER and text_is(key, texts.key, <int>strlen(texts.key)):
            (<Answers*>r.answers).found[texts.answer] = value
        return True
    if schema != NULL:
        for i in range(schema.count):
            if text_is(key, schema.fields[i].name, schema.fields[i].size):
                if seen[0] >> i & 1:
                    return False
                seen[0] |= <uint32_t>1 << i
                return read_field(r, &schema.fields[i])
    return skip_value(r)


cdef inline bint read_object(Reader* r, const Schema* schema, const Field* texts) noexcept nogil:
    """An object with the fields of ``schema``; or, if ``texts`` is given, a map of texts; else any object."""
    cdef uint32_t seen = 0
    cdef int i
    if not enter(r, c"{"):
        return False
    if not take(r, c"}"):
        while True:
            if not read_member(r, schema, texts, &seen):
                return False
            if take(r, c"}"):
                break
            if not take(r, c","):
                return False
    r.depth -= 1
    if schema != NULL:
        for i in range(schema.count):
            if schema.fields[i].required and not seen >> i & 1:
                return False
    return True


cdef inline bint read_document(Slice raw, const Schema* schema, Answers* answers) noexcept nogil:
    """Whether a document fits ``schema``; only then do the answers that it has stand in ``answers``."""
    cdef Reader reader = Reader(raw.at, raw.at + raw.size, 0, answers)
    memset(answers, 0, sizeof(Answers))
    if raw.size > MAX_DOCUMENT_BYTES:
        return False
    skip_space(&reader)
    return read_object(&reader, schema, NULL) and reader.at == reader.end
