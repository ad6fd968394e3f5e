"""Image references over UTF-8 bytes: the grammar of the OCI distribution client, without a regular expression."""

from libc.string cimport memchr, memcmp, memcpy


cdef struct Slice:
    const char* at
    Py_ssize_t size


cdef enum Fault:
    FAULT_NONE
    FAULT_FORM
    FAULT_LENGTH
    FAULT_ALGORITHM
    FAULT_DIGITS


cdef struct Parts:
    Slice registry
    Slice repository
    bint official  # "library/" goes before the repository
    Slice tag  # at == NULL: none
    Slice digest
    int prefix  # how much of "docker.io/library/" the canonical spelling has before `rest`
    Slice rest  # what it has of the text
    bint untagged  # ":latest" goes behind that


cdef extern from "zlayer_driver/_fastpath/glance.h" nogil:
    ctypedef struct Glance:
        int registry
        int repository
        bint nested
        int tag
        int digest
    bint glance(const char* text, size_t size, Glance* found)


cdef extern from *:
    """
    enum { WORD = 1, LOWER = 2, ALNUM = 4, HEX = 8, DIGIT = 16, ALPHA = 32 };
    #define D (WORD | LOWER | ALNUM | HEX | DIGIT)
    #define X (WORD | LOWER | ALNUM | HEX | ALPHA)
    #define L (WORD | LOWER | ALNUM | ALPHA)
    #define Y (WORD | ALNUM | HEX | ALPHA)
    #define U (WORD | ALNUM | ALPHA)
    /* What a byte may be part of; bytes of 128 and more are in no class. */
    static const unsigned char char_class[256] = {
        ['0'] = D, D, D, D, D, D, D, D, D, D,
        ['A'] = Y, Y, Y, Y, Y, Y, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U, U,
        ['_'] = WORD,
        ['a'] = X, X, X, X, X, X, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L, L,
    };
    #undef D
    #undef X
    #undef L
    #undef Y
    #undef U

    /* memcpy without a call for what is mostly short: two copies that may overlap. */
    static inline void copy_text(char *out, const char *at, size_t size) {
        if (size > 32) memcpy(out, at, size);
        else if (size >= 16) { memcpy(out, at, 16); memcpy(out + size - 16, at + size - 16, 16); }
        else if (size >= 8) { memcpy(out, at, 8); memcpy(out + size - 8, at + size - 8, 8); }
        else if (size >= 4) { memcpy(out, at, 4); memcpy(out + size - 4, at + size - 4, 4); }
        else if (size) { out[0] = at[0]; out[size / 2] = at[size / 2]; out[size - 1] = at[size - 1]; }
    }
    """
    void copy_text(char* out, const char* at, size_t size) nogil
    const int WORD, LOWER, ALNUM, HEX, DIGIT, ALPHA
    const unsigned char char_class[256]


cdef inline Slice cut(const char* at, const char* end) noexcept nogil:
    return Slice(at, end - at)


cdef inline bint equals(Slice text, const char* literal, Py_ssize_t size) noexcept nogil:
    return text.size == size and memcmp(text.at, literal, <size_t>size) == 0


cdef inline const char* find(const char* at, const char* end, char wanted) noexcept nogil:
    return <const char*>memchr(at, wanted, <size_t>(end - at))


cdef inline const char* run(const char* at, const char* end, int kind) noexcept nogil:
    """The first byte from ``at`` that is not of ``kind``."""
    while at < end and char_class[<unsigned char>at[0]] & kind:
        at += 1
    return at


cdef inline bint is_component(const char* at, const char* end) noexcept nogil:
    """``[a-z0-9]+`` joined by one dot, one or two underscores, or dashes."""
    cdef const char* after
    while True:
        after = run(at, end, LOWER)
        if after == at:
            return False
        if after == end:
            return True
        at = after + 1
        if after[0] == c"-":
            while at < end and at[0] == c"-":
                at += 1
        elif after[0] == c"_":
            at += at < end and at[0] == c"_"
        elif after[0] != c".":
            return False


cdef inline bint is_domain(const char* at, const char* end) noexcept nogil:
    """Labels of letters, digits and inner dashes, joined by dots, and maybe a port."""
    cdef const char* after
    while True:
        after = run(at, end, ALNUM)
        if after == at:
            return False
        if after == end:
            return True
        at = after + 1
        if after[0] == c":":
            return at < end and run(at, end, DIGIT) == end
        if after[0] == c"-":
            while at < end and at[0] == c"-":
                at += 1
        elif after[0] != c".":
            return False


cdef inline const char* path_end(const char* at, const char* end, bint* nested) noexcept nogil:
    """The first byte behind one or more components joined by slashes, or NULL if they are not well-formed up to there."""
    cdef const char* after
    while True:
        after = run(at, end, LOWER)
        if after == at:
            return NULL
        if after == end:
            return after
        at = after + 1
        if after[0] == c"/":
            nested[0] = True
        elif after[0] == c"-":
            while at < end and at[0] == c"-":
                at += 1
        elif after[0] == c"_":
            at += at < end and at[0] == c"_"
        elif after[0] != c".":
            return after


cdef inline bint is_wide_tag(Slice tag):
    """Word characters of UTS #18 (letters, marks, decimal digits, connectors, join controls), dots and dashes; at most 128 characters."""
    cdef str text = tag.at[:tag.size].decode("utf-8")
    cdef str kind
    cdef Py_UCS4 char
    for i, char in enumerate(text):
        if char.isalpha() or char.isdecimal():
            continue
        from unicodedata import category  # rare: most tags are ASCII, and others mostly letters
        kind = category(char)
        if not (
            kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or char == 0x200C or char == 0x200D or (i > 0 and (char == u"." or char == u"-"))
            or 0x24B6 <= char <= 0x24E9 or 0x1F130 <= char <= 0x1F149 or 0x1F150 <= char <= 0x1F169 or 0x1F170 <= char <= 0x1F189
        ):
            return False
    return 0 < len(text) <= 128


cdef inline bint is_tag(Slice tag):
    cdef const char* at = tag.at
    cdef const char* end = tag.at + tag.size
    if at == end or at[0] == c"." or at[0] == c"-":
        return False
    while at < end and (char_class[<unsigned char>at[0]] & WORD or at[0] == c"." or at[0] == c"-"):
        at += 1
    if at < end:
        return <unsigned char>at[0] >= 128 and tag.size <= 512 and is_wide_tag(tag)
    return tag.size <= 128


cdef inline Fault check_digest(Slice digest) noexcept nogil:
    cdef const char* end = digest.at + digest.size
    cdef const char* colon = find(digest.at, end, c":")
    cdef const char* at = digest.at
    cdef const char* after
    cdef Py_ssize_t digits
    if colon == NULL or run(colon + 1, end, HEX) != end or end - colon <= 32:
        return FAULT_FORM
    while True:  # words joined by one of -_+.
        after = run(at, colon, ALNUM)
        if after == at or not char_class[<unsigned char>at[0]] & ALPHA:
            return FAULT_FORM
        if after == colon:
            break
        if after[0] != c"-" and after[0] != c"_" and after[0] != c"+" and after[0] != c".":
            return FAULT_FORM
        at = after + 1
    digits = end - colon - 1
    if equals(cut(digest.at, colon), "sha256", 6):
        return FAULT_NONE if digits == 64 else FAULT_DIGITS
    if equals(cut(digest.at, colon), "sha384", 6):
        return FAULT_NONE if digits == 96 else FAULT_DIGITS
    if equals(cut(digest.at, colon), "sha512", 6):
        return FAULT_NONE if digits == 128 else FAULT_DIGITS
    return FAULT_ALGORITHM


cdef inline bint is_registry(Slice first) noexcept nogil:
    """Whether the part before the first slash is a registry rather than part of the path."""
    cdef Py_ssize_t i
    cdef bint found = False
    for i in range(first.size):
        found |= (first.at[i] == c".") | (first.at[i] == c":")
    return found or equals(first, "localhost", 9)


cdef inline const char* parse_name(const char* text, const char* end, Parts* parts) noexcept nogil:
    """Fills registry and repository; the first byte behind the name, or NULL if it is none."""
    cdef const char* slash = find(text, end, c"/")
    cdef const char* path = text if slash == NULL else slash + 1
    cdef const char* after
    cdef bint nested = False
    if slash != NULL and not is_domain(text, slash) and not is_component(text, slash):
        return NULL
    after = path_end(path, end, &nested)
    if after == NULL:
        return NULL
    parts.registry = Slice("docker.io", 9)
    parts.repository = cut(text, after)
    parts.official = slash == NULL
    if slash != NULL and is_registry(cut(text, slash)):
        parts.repository = cut(path, after)
        if not equals(cut(text, slash), "index.docker.io", 15):
            parts.registry = cut(text, slash)
        parts.official = not nested and equals(parts.registry, "docker.io", 9)
    return after


cdef inline bint parse_plain(const char* text, Py_ssize_t size, Parts* parts) noexcept nogil:
    """Fills ``parts`` of a text that is a reference at a glance."""
    cdef Glance seen
    cdef const char* end
    if not glance(text, <size_t>size, &seen):
        return False
    parts.registry = Slice("docker.io", 9)
    if seen.registry > 0 and not equals(Slice(text, seen.registry - 1), "index.docker.io", 15):
        parts.registry = Slice(text, seen.registry - 1)
    parts.repository = Slice(text + seen.registry, seen.repository)
    parts.official = not seen.nested and equals(parts.registry, "docker.io", 9)
    end = parts.repository.at + seen.repository
    parts.tag = Slice(end + 1, seen.tag - 1) if seen.tag > 0 else Slice(NULL, 0)
    parts.digest = Slice(end + seen.tag + 1, seen.digest - 1) if seen.digest > 0 else Slice(NULL, 0)
    return True


cdef inline Fault parse_any(const char* text, Py_ssize_t size, Parts* parts):
    cdef const char* end = text + size
    cdef const char* at = parse_name(text, end, parts)
    cdef const char* after
    cdef Fault fault = FAULT_NONE
    parts.tag = parts.digest = Slice(NULL, 0)
    if at == NULL:
        return FAULT_FORM
    if at < end and at[0] == c":":
        after = find(at, end, c"@")
        parts.tag = cut(at + 1, end if after == NULL else after)
        if not is_tag(parts.tag):
            return FAULT_FORM
        at += 1 + parts.tag.size
    if at < end:
        parts.digest = cut(at + 1, end)
        fault = check_digest(parts.digest) if at[0] == c"@" else FAULT_FORM
        if fault == FAULT_FORM:
            return fault
    if parts.repository.size + 8 * parts.official > 255:
        return FAULT_LENGTH
    return fault


cdef inline Fault parse_parts(const char* text, Py_ssize_t size, Parts* parts):
    """Fills ``parts`` with slices of ``text``; what they hold is only of use where no fault is returned."""
    cdef Fault fault = FAULT_NONE
    if not parse_plain(text, size, parts):
        fault = parse_any(text, size, parts)
    cdef bint verbatim
    if fault == FAULT_NONE:
        verbatim = not parts.official and parts.registry.at == text
        parts.prefix = 0 if verbatim else 18 if parts.official else 10
        parts.rest = cut(text if verbatim else parts.repository.at, text + size)
        parts.untagged = parts.tag.at == NULL and parts.digest.at == NULL
        if parts.untagged:
            parts.tag = Slice("latest", 6)
    return fault


cdef inline Py_ssize_t canonical_size(const Parts* parts) noexcept nogil:
    return parts.prefix + parts.rest.size + 7 * parts.untagged


cdef inline char* put(char* out, Slice text) noexcept nogil:
    copy_text(out, text.at, <size_t>text.size)
    return out + text.size


cdef inline void write_canonical(const Parts* parts, char* out) noexcept nogil:
    """Writes ``canonical_size(parts)`` bytes."""
    if parts.prefix > 0:
        memcpy(out, "docker.io/library/", <size_t>18 if parts.official else <size_t>10)
    out = put(out + parts.prefix, parts.rest)
    if parts.untagged:
        memcpy(out, ":latest", 7)
