/* XXH3 128-bit with seed 0, from the algorithm's published description: the checksum of redb's pages and commit slots. */
#ifndef ZLAYER_XXH3_H
#define ZLAYER_XXH3_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct { uint64_t low, high; } Hash128;

#define XXH3_P32_1 0x9E3779B1u
#define XXH3_P32_2 0x85EBCA77u
#define XXH3_P32_3 0xC2B2AE3Du
#define XXH3_P64_1 0x9E3779B185EBCA87u
#define XXH3_P64_2 0xC2B2AE3D27D4EB4Fu
#define XXH3_P64_3 0x165667B19E3779F9u
#define XXH3_P64_4 0x85EBCA77C2B2AE63u
#define XXH3_P64_5 0x27D4EB2F165667C5u

static const unsigned char xxh3_secret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

static inline uint64_t xxh3_u64(const unsigned char *at) {
    uint64_t word;
    memcpy(&word, at, 8);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    word = __builtin_bswap64(word);
#endif
    return word;
}

/* The same of a big-endian number. */
static inline uint64_t xxh3_swapped(const unsigned char *at) {
    return __builtin_bswap64(xxh3_u64(at));
}

static inline uint32_t xxh3_u32(const unsigned char *at) {
    return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static inline Hash128 xxh3_product(uint64_t a, uint64_t b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (Hash128){(uint64_t)product, (uint64_t)(product >> 64)};
}

static inline uint64_t xxh3_fold(uint64_t a, uint64_t b) {
    Hash128 product = xxh3_product(a, b);
    return product.low ^ product.high;
}

static inline uint64_t xxh3_avalanche(uint64_t h) {
    h = (h ^ h >> 37) * 0x165667919E3779F9u;
    return h ^ h >> 32;
}

static inline uint64_t xxh3_avalanche_64(uint64_t h) {
    h = (h ^ h >> 33) * XXH3_P64_2;
    h = (h ^ h >> 29) * XXH3_P64_3;
    return h ^ h >> 32;
}

static inline Hash128 xxh3_up_to_16(const unsigned char *data, size_t size) {
    const unsigned char *s = xxh3_secret;
    if (size == 0)
        return (Hash128){xxh3_avalanche_64(xxh3_u64(s + 64) ^ xxh3_u64(s + 72)), xxh3_avalanche_64(xxh3_u64(s + 80) ^ xxh3_u64(s + 88))};
    if (size < 4) {
        uint32_t low = (uint32_t)data[0] << 16 | (uint32_t)data[size >> 1] << 24 | data[size - 1] | (uint32_t)size << 8;
        uint32_t high = __builtin_bswap32(low);
        high = high << 13 | high >> 19;
        return (Hash128){xxh3_avalanche_64(low ^ (uint64_t)(xxh3_u32(s) ^ xxh3_u32(s + 4))),
                         xxh3_avalanche_64(high ^ (uint64_t)(xxh3_u32(s + 8) ^ xxh3_u32(s + 12)))};
    }
    if (size <= 8) {
        uint64_t word = xxh3_u32(data) | (uint64_t)xxh3_u32(data + size - 4) << 32;
        Hash128 m = xxh3_product(word ^ xxh3_u64(s + 16) ^ xxh3_u64(s + 24), XXH3_P64_1 + ((uint64_t)size << 2));
        m.high += m.low << 1;
        m.low ^= m.high >> 3;
        m.low = (m.low ^ m.low >> 35) * 0x9FB21C651E98DF25u;
        return (Hash128){m.low ^ m.low >> 28, xxh3_avalanche(m.high)};
    }
    uint64_t first = xxh3_u64(data), last = xxh3_u64(data + size - 8);
    Hash128 m = xxh3_product(first ^ last ^ xxh3_u64(s + 32) ^ xxh3_u64(s + 40), XXH3_P64_1);
    m.low += (uint64_t)(size - 1) << 54;
    last ^= xxh3_u64(s + 48) ^ xxh3_u64(s + 56);
    m.high += last + (uint64_t)(uint32_t)last * (XXH3_P32_2 - 1);
    Hash128 h = xxh3_product(m.low ^ __builtin_bswap64(m.high), XXH3_P64_2);
    return (Hash128){xxh3_avalanche(h.low), xxh3_avalanche(h.high + m.high * XXH3_P64_2)};
}

static inline uint64_t xxh3_mix16(const unsigned char *data, const unsigned char *secret) {
    return xxh3_fold(xxh3_u64(data) ^ xxh3_u64(secret), xxh3_u64(data + 8) ^ xxh3_u64(secret + 8));
}

static inline void xxh3_mix32(Hash128 *state, const unsigned char *one, const unsigned char *two, const unsigned char *secret) {
    state->low = (state->low + xxh3_mix16(one, secret)) ^ (xxh3_u64(two) + xxh3_u64(two + 8));
    state->high = (state->high + xxh3_mix16(two, secret + 16)) ^ (xxh3_u64(one) + xxh3_u64(one + 8));
}

static inline Hash128 xxh3_up_to_240(const unsigned char *data, size_t size) {
    Hash128 state = {size * XXH3_P64_1, 0};
    if (size <= 128) {
        for (size_t pair = (size - 1) / 32 + 1; pair-- > 0;)
            xxh3_mix32(&state, data + 16 * pair, data + size - 16 * (pair + 1), xxh3_secret + 32 * pair);
    } else {
        for (size_t at = 0; at < 128; at += 32) xxh3_mix32(&state, data + at, data + at + 16, xxh3_secret + at);
        state = (Hash128){xxh3_avalanche(state.low), xxh3_avalanche(state.high)};
        for (size_t at = 128; at + 32 <= size; at += 32) xxh3_mix32(&state, data + at, data + at + 16, xxh3_secret + 3 + at - 128);
        xxh3_mix32(&state, data + size - 16, data + size - 32, xxh3_secret + 136 - 17 - 16);
    }
    uint64_t high = state.low * XXH3_P64_1 + state.high * XXH3_P64_4 + size * XXH3_P64_2;
    return (Hash128){xxh3_avalanche(state.low + state.high), 0 - xxh3_avalanche(high)};
}

static inline void xxh3_accumulate(uint64_t state[8], const unsigned char *data, const unsigned char *secret) {
    for (int i = 0; i < 8; i++) {
        uint64_t lane = xxh3_u64(data + 8 * i), key = lane ^ xxh3_u64(secret + 8 * i);
        state[i ^ 1] += lane;
        state[i] += (uint64_t)(uint32_t)key * (key >> 32);
    }
}

static inline uint64_t xxh3_merge(const uint64_t state[8], const unsigned char *secret, uint64_t start) {
    for (int i = 0; i < 4; i++) start += xxh3_fold(state[2 * i] ^ xxh3_u64(secret + 16 * i), state[2 * i + 1] ^ xxh3_u64(secret + 16 * i + 8));
    return xxh3_avalanche(start);
}

static inline Hash128 xxh3_long(const unsigned char *data, size_t size) {
    uint64_t state[8] = {XXH3_P32_3, XXH3_P64_1, XXH3_P64_2, XXH3_P64_3, XXH3_P64_4, XXH3_P32_2, XXH3_P64_5, XXH3_P32_1};
    size_t stripes = (size - 1) / 64;
    for (size_t n = 0; n < stripes; n++) {
        xxh3_accumulate(state, data + 64 * n, xxh3_secret + 8 * (n % 16));
        if (n % 16 == 15)
            for (int i = 0; i < 8; i++) state[i] = (state[i] ^ state[i] >> 47 ^ xxh3_u64(xxh3_secret + 128 + 8 * i)) * XXH3_P32_1;
    }
    xxh3_accumulate(state, data + size - 64, xxh3_secret + 192 - 64 - 7);
    return (Hash128){xxh3_merge(state, xxh3_secret + 11, size * XXH3_P64_1),
                     xxh3_merge(state, xxh3_secret + 192 - 64 - 11, ~(size * XXH3_P64_2))};
}

static inline Hash128 xxh3_128(const unsigned char *data, size_t size) {
    return size <= 16 ? xxh3_up_to_16(data, size) : size <= 240 ? xxh3_up_to_240(data, size) : xxh3_long(data, size);
}

/* Whether `data` has a checksum as redb stores it: 16 bytes, little endian. */
static inline int xxh3_matches(const unsigned char *data, size_t size, const unsigned char *checksum) {
    Hash128 hash = xxh3_128(data, size);
    return hash.low == xxh3_u64(checksum) && hash.high == xxh3_u64(checksum + 8);
}
#endif
