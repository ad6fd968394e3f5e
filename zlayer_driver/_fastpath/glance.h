/* References as people mostly write them, sixteen bytes at a time: ASCII, at most 64 bytes, and maybe a sha256 digest behind them.
   What is not told at a glance may be a reference all the same, and elsewhere than on x86 nothing is: then the grammar decides. */
#ifndef ZLAYER_GLANCE_H
#define ZLAYER_GLANCE_H

#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

enum { GLANCE_BYTES = 64, SHA256_BYTES = 72 };  /* the latter with its @ */

/* Sizes of what stands one behind the other. */
typedef struct {
    int registry; /* with its slash; 0: there is none */
    int repository;
    int nested;   /* whether there is a slash in the repository */
    int tag;      /* with its colon */
    int digest;   /* with its @ */
} Glance;

#ifdef __SSE2__
/* A bit for each byte. */
typedef struct { uint64_t lower, upper, dot, line, dash, slash, colon; } GlanceBits;

static inline __m128i glance_between(__m128i bytes, char first, int count) {
    return _mm_cmplt_epi8(_mm_add_epi8(bytes, _mm_set1_epi8((char)(-128 - first))), _mm_set1_epi8((char)(-128 + count)));
}

static inline uint64_t glance_mask(__m128i found, size_t at) {
    return (uint64_t)(uint32_t)_mm_movemask_epi8(found) << at;
}

static inline uint64_t glance_equal(__m128i bytes, char wanted, size_t at) {
    return glance_mask(_mm_cmpeq_epi8(bytes, _mm_set1_epi8(wanted)), at);
}

static inline void glance_at(GlanceBits *bits, const char *text, size_t at) {
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(text + at));
    bits->lower |= glance_mask(_mm_or_si128(glance_between(bytes, 'a', 26), glance_between(bytes, '0', 10)), at);
    bits->upper |= glance_mask(glance_between(bytes, 'A', 26), at);
    bits->dot |= glance_equal(bytes, '.', at);
    bits->line |= glance_equal(bytes, '_', at);
    bits->dash |= glance_equal(bytes, '-', at);
    bits->slash |= glance_equal(bytes, '/', at);
    bits->colon |= glance_equal(bytes, ':', at);
}

/* Blocks that overlap set the same bits twice, so that nothing is read beyond the text. */
static inline GlanceBits glance_bits(const char *text, size_t size) {
    GlanceBits bits = {0, 0, 0, 0, 0, 0, 0};
    char few[16] = {0};
    if (size < 16) {
        memcpy(few, text, size);
        glance_at(&bits, few, 0);
        return bits;
    }
    glance_at(&bits, text, 0);
    if (size > 32) {
        glance_at(&bits, text, 16);
        glance_at(&bits, text, size - 32);
    }
    glance_at(&bits, text, size - 16);
    return bits;
}

static inline int glance_is_sha256(const char *at) {
    __m128i good = _mm_set1_epi8(-1);
    if (memcmp(at, "@sha256:", 8) != 0) return 0;
    for (int i = 8; i < SHA256_BYTES; i += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)(at + i));
        __m128i letters = glance_between(_mm_or_si128(bytes, _mm_set1_epi8(0x20)), 'a', 6);
        good = _mm_and_si128(good, _mm_or_si128(letters, glance_between(bytes, '0', 10)));
    }
    return _mm_movemask_epi8(good) == 0xFFFF;
}

/* Bits from `first` up to `end`, which is behind it and at most 64. */
static inline uint64_t glance_span(int first, int end) {
    return ~(uint64_t)0 >> (64 - (end - first)) << first;
}

/* Whether a span begins and ends with one of `words`, and holds nothing else but `joints`. */
static inline int glance_is_joined(int first, int end, uint64_t words, uint64_t joints) {
    return first < end && (glance_span(first, end) & ~(words | joints)) == 0 && words >> first & words >> (end - 1) & 1;
}

static inline int glance_is_domain(const GlanceBits *bits, const char *text, int slash) {
    uint64_t words = bits->lower | bits->upper;
    int end = bits->colon ? __builtin_ctzll(bits->colon) : slash;
    if (end > slash) end = slash;
    for (int i = end + 1; i < slash; i++)
        if (text[i] < '0' || text[i] > '9') return 0;
    uint64_t joints = (bits->dot | bits->dash) & glance_span(0, slash);
    uint64_t wrong = (bits->dot & joints << 1) | (joints & bits->dot << 1);
    return slash != end + 1 && glance_is_joined(0, end, words, joints) && (wrong & joints) == 0;
}
#endif

/* Whether a text is a reference beyond doubt, and then what stands where. */
static inline int glance(const char *text, size_t size, Glance *found) {
#ifdef __SSE2__
    found->digest = size > SHA256_BYTES && text[size - SHA256_BYTES] == '@' ? SHA256_BYTES : 0;
    int end = (int)size - found->digest;
    if (size == 0 || size > GLANCE_BYTES + SHA256_BYTES || end > GLANCE_BYTES) return 0;
    if (found->digest && !glance_is_sha256(text + end)) return 0;
    GlanceBits bits = glance_bits(text, (size_t)end);
    int first = bits.slash ? __builtin_ctzll(bits.slash) : 0;
    found->registry = 0;
    if (first > 0) {
        uint64_t marks = (bits.dot | bits.colon) & glance_span(0, first);
        if (marks || (first == 9 && memcmp(text, "localhost", 9) == 0)) {
            if (!glance_is_domain(&bits, text, first)) return 0;
            found->registry = first + 1;
        }
    }
    int begin = found->registry;
    if (begin == end) return 0;
    uint64_t colon = bits.colon & glance_span(begin, end);
    int behind = colon ? __builtin_ctzll(colon) : end;
    if (behind == begin) return 0;
    uint64_t span = glance_span(begin, behind), joints = (bits.dot | bits.line | bits.dash | bits.slash) & span;
    uint64_t alone = (bits.dot | bits.slash) & span;
    uint64_t wrong = (alone & joints << 1) | (joints & alone << 1) | (bits.line & bits.dash << 1) | (bits.dash & bits.line << 1)
                   | (bits.line & bits.line << 1 & bits.line << 2);
    if (!glance_is_joined(begin, behind, bits.lower, joints) || wrong & span) return 0;
    if (colon) {
        uint64_t words = bits.lower | bits.upper | bits.line, tag = behind + 1 < end ? glance_span(behind + 1, end) : 0;
        if (!(words & tag & -tag) || tag & ~(words | bits.dot | bits.dash)) return 0;
    }
    found->repository = behind - begin;
    found->nested = (bits.slash & span) != 0;
    found->tag = end - behind;
    return 1;
#else
    (void)text, (void)size, (void)found;
    return 0;
#endif
}
#endif
