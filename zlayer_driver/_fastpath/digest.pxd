"""SHA-256, by the CPU's own instructions where it has them."""

from libc.string cimport memcmp

from zlayer_driver._fastpath.grammar cimport Slice


cdef extern from "zlayer_driver/_fastpath/sha256.h" nogil:
    const char HEX_DIGITS[17]
    void sha256(const unsigned char* data, size_t size, unsigned char* digest)


cdef inline bint is_sha256(Slice text) noexcept nogil:
    """``sha256:`` and 64 hex digits in lower case."""
    cdef Py_ssize_t i
    if text.size != 71 or memcmp(text.at, "sha256:", 7) != 0:
        return False
    for i in range(7, 71):
        if not (c"0" <= text.at[i] <= c"9" or c"a" <= text.at[i] <= c"f"):
            return False
    return True


cdef inline bint hashes_to(const char* data, Py_ssize_t size, const char* digest) noexcept nogil:
    """Whether content has the digest that `is_sha256` accepted."""
    cdef unsigned char found[32]
    cdef int i, high, low
    sha256(<const unsigned char*>data, <size_t>size, found)
    for i in range(32):
        high = found[i] >> 4
        low = found[i] & 15
        if digest[7 + 2 * i] != HEX_DIGITS[high] or digest[8 + 2 * i] != HEX_DIGITS[low]:
            return False
    return True
