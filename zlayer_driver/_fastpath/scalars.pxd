"""JSON's texts, numbers and words, read in place.

The rules are those of the readable twin (`_fastpath_py.documents`): UTF-8, finite numbers, whole surrogate pairs.
"""

from libc.math cimport isinf
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport strtod
from libc.string cimport memcmp, memcpy, strchr

from zlayer_driver._fastpath.grammar cimport Slice, cut


cdef extern from "zlayer_driver/_fastpath/schema.h" nogil:
    bint is_plain(unsigned char byte)


cdef struct Reader:
    const char* at
    const char* end
    int depth
    void* answers  # where the reader of the document keeps what it looks for


cdef inline void skip_space(Reader* r) noexcept nogil:
    while r.at < r.end and (r.at[0] == c" " or r.at[0] == c"\n" or r.at[0] == c"\r" or r.at[0] == c"\t"):
        r.at += 1


cdef inline bint take(Reader* r, char wanted) noexcept nogil:
    """Consumes ``wanted`` and the space after it, or nothing."""
    if r.at == r.end or r.at[0] != wanted:
        return False
    r.at += 1
    skip_space(r)
    return True


cdef inline bint take_word(Reader* r, const char* word, Py_ssize_t size) noexcept nogil:
    if r.end - r.at < size or memcmp(r.at, word, <size_t>size) != 0:
        return False
    r.at += size
    skip_space(r)
    return True


cdef inline int hex4(const char* at, const char* end) noexcept nogil:
    """The value of four hex digits, or -1."""
    cdef int value = 0
    cdef int digit, i
    if end - at < 4:
        return -1
    for i in range(4):
        digit = at[i]
        if c"0" <= digit <= c"9":
            digit -= c"0"
        elif c"a" <= (digit | 0x20) <= c"f":
            digit = (digit | 0x20) - c"a" + 10
        else:
            return -1
        value = value << 4 | digit
    return value


cdef inline bint skip_escape(Reader* r) noexcept nogil:
    """The reader stands behind a backslash."""
    cdef int unit
    if r.at == r.end:
        return False
    r.at += 1
    if r.at[-1] != c"u":
        return r.at[-1] != 0 and strchr("\"\\/bfnrt", r.at[-1]) != NULL
    unit = hex4(r.at, r.end)
    if unit < 0 or 0xDC00 <= unit < 0xE000:
        return False
    r.at += 4
    if not 0xD800 <= unit < 0xDC00:
        return True
    if r.end - r.at < 6 or r.at[0] != c"\\" or r.at[1] != c"u" or not 0xDC00 <= hex4(r.at + 2, r.end) < 0xE000:
        return False
    r.at += 6
    return True


cdef inline int sequence_size(const unsigned char* at, Py_ssize_t left) noexcept nogil:
    """Length of the well-formed UTF-8 sequence of two to four bytes at ``at`` (Unicode, table 3-7), or 0."""
    cdef int size = 2 if 0xC2 <= at[0] < 0xE0 else 3 if 0xE0 <= at[0] < 0xF0 else 4 if 0xF0 <= at[0] < 0xF5 else 0
    cdef unsigned char low = 0xA0 if at[0] == 0xE0 else 0x90 if at[0] == 0xF0 else 0x80
    cdef unsigned char high = 0x9F if at[0] == 0xED else 0x8F if at[0] == 0xF4 else 0xBF
    cdef int i
    if size == 0 or left < size or not low <= at[1] <= high:
        return 0
    for i in range(2, size):
        if at[i] & 0xC0 != 0x80:
            return 0
    return size


cdef inline uint64_t odd_bytes(const char* at) noexcept nogil:
    """Non-zero if one of eight bytes is a quote, a backslash, below 0x20 or above 0x7F."""
    cdef uint64_t ones = 0x0101010101010101
    cdef uint64_t word, quote, slash
    memcpy(&word, at, 8)
    quote = word ^ (ones * 0x22)
    slash = word ^ (ones * 0x5C)
    return ((quote - ones) | (slash - ones) | (word - ones * 0x20) | word) & (ones * 0x80)


cdef inline bint read_text(Reader* r, Slice* text) noexcept nogil:
    """Consumes a string and the space after it; ``text`` is what stood between the quotes."""
    cdef const char* start
    cdef int size
    if r.at == r.end or r.at[0] != c"\"":
        return False
    r.at += 1
    start = r.at
    while True:
        while r.end - r.at >= 8 and odd_bytes(r.at) == 0:
            r.at += 8
        while r.at < r.end and is_plain(<unsigned char>r.at[0]):
            r.at += 1
        if r.at == r.end or <unsigned char>r.at[0] < 0x20:
            return False
        if r.at[0] == c"\"":
            break
        if r.at[0] == c"\\":
            r.at += 1
            if not skip_escape(r):
                return False
        else:
            size = sequence_size(<const unsigned char*>r.at, r.end - r.at)
            if size == 0:
                return False
            r.at += size
    text[0] = cut(start, r.at)
    r.at += 1
    skip_space(r)
    return True


cdef inline Py_ssize_t unescape(Slice raw, char* out) noexcept nogil:
    """Writes the UTF-8 of a string that `read_text` accepted (at most ``raw.size`` bytes) and returns its length."""
    cdef const char* at = raw.at
    cdef const char* end = raw.at + raw.size
    cdef char* start = out
    cdef uint32_t char
    while at < end:
        if at[0] != c"\\":
            out[0] = at[0]
            at += 1
            out += 1
            continue
        at += 2
        if at[-1] != c"u":
            out[0] = plain_escape(at[-1])
            out += 1
            continue
        char = <uint32_t>hex4(at, end)
        at += 4
        if 0xD800 <= char < 0xDC00:
            char = 0x10000 + ((char - 0xD800) << 10) + (<uint32_t>hex4(at + 2, end) - 0xDC00)
            at += 6
        out = put_char(out, char)
    return out - start


cdef inline char plain_escape(char name) noexcept nogil:
    if name == c"b":
        return c"\b"
    if name == c"f":
        return c"\f"
    if name == c"n":
        return c"\n"
    if name == c"r":
        return c"\r"
    return c"\t" if name == c"t" else name


cdef inline char* put_char(char* out, uint32_t char) noexcept nogil:
    cdef int size = 1 if char < 0x80 else 2 if char < 0x800 else 3 if char < 0x10000 else 4
    cdef int lead = 0 if size == 1 else 0xF0 << (4 - size) & 0xFF
    cdef int i
    out[0] = <char>(lead | (char >> 6 * (size - 1)))
    for i in range(1, size):
        out[i] = <char>(0x80 | (char >> 6 * (size - 1 - i) & 0x3F))
    return out + size


cdef inline bint text_is(Slice raw, const char* name, int size) noexcept nogil:
    """Whether a JSON string spells ``name``, which has at most 32 bytes; each may be written as an escape of six."""
    cdef char plain[192]
    if raw.size == size:
        return memcmp(raw.at, name, <size_t>size) == 0  # an escape is longer than what it stands for
    if raw.size < size or raw.size > 6 * size:
        return False
    return unescape(raw, plain) == size and memcmp(plain, name, <size_t>size) == 0


cdef inline bint is_digit(const char* at, const char* end) noexcept nogil:
    return at < end and c"0" <= at[0] <= c"9"


cdef inline bint is_finite(Slice number, int64_t exponent) noexcept nogil:
    """Whether a number whose ``e`` part is ``exponent`` fits a double; 19 digits decide."""
    cdef uint64_t digits = 0
    cdef bint fraction = False
    cdef char decimal[48]
    cdef Py_ssize_t i
    for i in range(number.size):
        if number.at[i] == c".":
            fraction = True
        elif c"0" <= number.at[i] <= c"9":
            if digits < <uint64_t>1_000_000_000_000_000_000:
                digits = digits * 10 + <uint64_t>(number.at[i] - c"0")
                exponent -= fraction
            elif not fraction:
                exponent += 1
        elif number.at[i] != c"-":
            break
    if digits == 0:
        return True
    snprintf(decimal, sizeof(decimal), "%llue%lld", <unsigned long long>digits, <long long>exponent)
    return not isinf(strtod(decimal, NULL))


cdef inline bint read_number(Reader* r, Slice* number) noexcept nogil:
    """Consumes a number and the space after it."""
    cdef const char* start = r.at
    cdef int64_t exponent = 0
    cdef bint negative, has_exponent = False
    r.at += r.at < r.end and r.at[0] == c"-"
    if not is_digit(r.at, r.end):
        return False
    if r.at[0] == c"0":
        r.at += 1
    else:
        while is_digit(r.at, r.end):
            r.at += 1
    if r.at < r.end and r.at[0] == c".":
        r.at += 1
        if not is_digit(r.at, r.end):
            return False
        while is_digit(r.at, r.end):
            r.at += 1
    if r.at < r.end and (r.at[0] | 0x20) == c"e":
        has_exponent = True
        r.at += 1
        negative = r.at < r.end and r.at[0] == c"-"
        r.at += r.at < r.end and (r.at[0] == c"-" or r.at[0] == c"+")
        if not is_digit(r.at, r.end):
            return False
        while is_digit(r.at, r.end):
            exponent = min(exponent * 10 + (r.at[0] - c"0"), <int64_t>1_000_000_000)
            r.at += 1
        exponent = -exponent if negative else exponent
    number[0] = cut(start, r.at)
    skip_space(r)
    return (not has_exponent and number.size < 300) or is_finite(number[0], exponent)


cdef inline bint read_integer(Reader* r, int64_t low, uint64_t high) noexcept nogil:
    """A number spelt as an integer within the bounds; ``-0`` is none."""
    cdef Slice number
    cdef uint64_t value = 0
    cdef uint64_t digit
    cdef bint negative
    cdef Py_ssize_t i
    if not read_number(r, &number):
        return False
    negative = number.at[0] == c"-"
    if number.size - negative > 20:
        return False
    for i in range(negative, number.size):
        if not c"0" <= number.at[i] <= c"9":
            return False
        digit = <uint64_t>(number.at[i] - c"0")
        if value > (<uint64_t>0xFFFFFFFFFFFFFFFF - digit) // 10:
            return False
        value = value * 10 + digit
    if negative:
        return 0 < value <= <uint64_t>0 - <uint64_t>low
    return value <= high


cdef inline bint skip_scalar(Reader* r) noexcept nogil:
    """Consumes a text, a number, or one of the three words, and the space after it. There is a byte to read."""
    cdef Slice ignored
    if r.at[0] == c"\"":
        return read_text(r, &ignored)
    if r.at[0] == c"-" or is_digit(r.at, r.end):
        return read_number(r, &ignored)
    return take_word(r, "null", 4) or take_word(r, "true", 4) or take_word(r, "false", 5)
