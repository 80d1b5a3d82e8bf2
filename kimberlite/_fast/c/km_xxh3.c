#include "km_xxh3.h"

#include <stdlib.h>
#include <string.h>

#include "km_cpu.h"

#if KM_CPU_X86
#include <immintrin.h>
#endif
#if KM_CPU_NEON
#include <arm_neon.h>
#endif

/* Reading order: constants and words; the message classes up to 240 bytes, by length;
 * the long kernels, scalar first as the readable one; the choice of a kernel; the API.
 *
 * Every function of the first two parts takes the seed and is inlined: the seed 0 entry
 * points then cost nothing for seeds. */

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define FALL_THROUGH(condition) __builtin_expect(!!(condition), 1)

typedef unsigned __int128 u128;

typedef struct {
    uint64_t low;
    uint64_t high;
} digest128;

#define PRIME32_1 UINT64_C(0x9E3779B1)
#define PRIME32_2 UINT64_C(0x85EBCA77)
#define PRIME32_3 UINT64_C(0xC2B2AE3D)
#define PRIME64_1 UINT64_C(0x9E3779B185EBCA87)
#define PRIME64_2 UINT64_C(0xC2B2AE3D27D4EB4F)
#define PRIME64_3 UINT64_C(0x165667B19E3779F9)
#define PRIME64_4 UINT64_C(0x85EBCA77C2B2AE63)
#define PRIME64_5 UINT64_C(0x27D4EB2F165667C5)
#define PRIME_MX1 UINT64_C(0x165667919E3779F9)
#define PRIME_MX2 UINT64_C(0x9FB21C651E98DF25)

enum {
    SECRET_SIZE = 192,
    STRIPE = 64,
    STRIPES_PER_BLOCK = (SECRET_SIZE - STRIPE) / 8,
    BLOCK = STRIPE * STRIPES_PER_BLOCK,
    SECRET_LAST_STRIPE = SECRET_SIZE - 71,
    SECRET_MERGE_LOW = 11,
    SECRET_MERGE_HIGH = SECRET_SIZE - 75,
};

static const uint8_t SECRET[SECRET_SIZE] __attribute__((aligned(64))) = {
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

INLINE uint32_t read32(const uint8_t *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

INLINE uint64_t read64(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

INLINE uint64_t rotate64(uint64_t word, int bits)
{
    return word << bits | word >> (64 - bits);
}

INLINE uint32_t rotate32(uint32_t word, int bits)
{
    return word << bits | word >> (32 - bits);
}

/* Both halves of a full product, folded into one word. */
INLINE uint64_t multiply_fold(uint64_t a, uint64_t b)
{
    u128 product = (u128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

INLINE uint64_t avalanche(uint64_t x)
{
    x ^= x >> 37;
    x *= PRIME_MX1;
    return x ^ x >> 32;
}

INLINE uint64_t avalanche_xxh64(uint64_t x)
{
    x ^= x >> 33;
    x *= PRIME64_2;
    x ^= x >> 29;
    x *= PRIME64_3;
    return x ^ x >> 32;
}

/* ---- 0 to 16 bytes ---------------------------------------------------------------- */

INLINE uint32_t combine_1to3(const uint8_t *data, size_t length)
{
    return (uint32_t)data[length - 1] | (uint32_t)length << 8 | (uint32_t)data[0] << 16 |
           (uint32_t)data[length >> 1] << 24;
}

INLINE uint64_t modify_seed_4to8(uint64_t seed)
{
    return seed ^ (uint64_t)__builtin_bswap32((uint32_t)seed) << 32;
}

INLINE uint64_t hash64_0to16(const uint8_t *data, size_t length, uint64_t seed)
{
    if (FALL_THROUGH(length > 8)) {
        uint64_t low = ((read64(SECRET + 24) ^ read64(SECRET + 32)) + seed) ^ read64(data);
        uint64_t high = ((read64(SECRET + 40) ^ read64(SECRET + 48)) - seed) ^ read64(data + length - 8);
        return avalanche(length + __builtin_bswap64(low) + high + multiply_fold(low, high));
    }
    if (length >= 4) {
        uint64_t combined = (uint64_t)read32(data) << 32 | read32(data + length - 4);
        uint64_t x = ((read64(SECRET + 8) ^ read64(SECRET + 16)) - modify_seed_4to8(seed)) ^ combined;
        x ^= rotate64(x, 49) ^ rotate64(x, 24);
        x *= PRIME_MX2;
        x ^= (x >> 35) + length;
        x *= PRIME_MX2;
        return x ^ x >> 28;
    }
    if (length > 0) {
        uint64_t key = (uint64_t)(read32(SECRET) ^ read32(SECRET + 4)) + seed;
        return avalanche_xxh64(key ^ combine_1to3(data, length));
    }
    return avalanche_xxh64(seed ^ read64(SECRET + 56) ^ read64(SECRET + 64));
}

INLINE digest128 hash128_0to16(const uint8_t *data, size_t length, uint64_t seed)
{
    digest128 out;
    if (FALL_THROUGH(length > 8)) {
        uint64_t first = read64(data);
        uint64_t last = read64(data + length - 8);
        uint64_t a = ((read64(SECRET + 32) ^ read64(SECRET + 40)) - seed) ^ first ^ last;
        uint64_t b = ((read64(SECRET + 48) ^ read64(SECRET + 56)) + seed) ^ last;
        u128 product = (u128)a * PRIME64_1;
        uint64_t low = (uint64_t)product + ((uint64_t)(length - 1) << 54);
        uint64_t high = (uint64_t)(product >> 64) + b + (uint64_t)(uint32_t)b * (PRIME32_2 - 1);
        low ^= __builtin_bswap64(high);
        u128 again = (u128)low * PRIME64_2;
        out.low = avalanche((uint64_t)again);
        out.high = avalanche((uint64_t)(again >> 64) + high * PRIME64_2);
    } else if (length >= 4) {
        uint64_t combined = read32(data) | (uint64_t)read32(data + length - 4) << 32;
        uint64_t x = ((read64(SECRET + 16) ^ read64(SECRET + 24)) + modify_seed_4to8(seed)) ^ combined;
        u128 product = (u128)x * (PRIME64_1 + ((uint64_t)length << 2));
        uint64_t low = (uint64_t)product;
        uint64_t high = (uint64_t)(product >> 64) + (low << 1);
        low ^= high >> 3;
        low ^= low >> 35;
        low *= PRIME_MX2;
        out.low = low ^ low >> 28;
        out.high = avalanche(high);
    } else if (length > 0) {
        uint32_t combined = combine_1to3(data, length);
        uint64_t low = (uint64_t)(read32(SECRET) ^ read32(SECRET + 4)) + seed;
        uint64_t high = (uint64_t)(read32(SECRET + 8) ^ read32(SECRET + 12)) - seed;
        out.low = avalanche_xxh64(low ^ combined);
        out.high = avalanche_xxh64(high ^ rotate32(__builtin_bswap32(combined), 13));
    } else {
        out.low = avalanche_xxh64(seed ^ read64(SECRET + 64) ^ read64(SECRET + 72));
        out.high = avalanche_xxh64(seed ^ read64(SECRET + 80) ^ read64(SECRET + 88));
    }
    return out;
}

/* ---- 17 to 240 bytes -------------------------------------------------------------- */

INLINE uint64_t mix16(const uint8_t *data, size_t secret_offset, uint64_t seed)
{
    return multiply_fold(read64(data) ^ (read64(SECRET + secret_offset) + seed),
                         read64(data + 8) ^ (read64(SECRET + secret_offset + 8) - seed));
}

INLINE void mix32(digest128 *acc, const uint8_t *one, const uint8_t *two, size_t secret_offset, uint64_t seed)
{
    acc->low += mix16(one, secret_offset, seed);
    acc->low ^= read64(two) + read64(two + 8);
    acc->high += mix16(two, secret_offset + 16, seed);
    acc->high ^= read64(one) + read64(one + 8);
}

/* Outer pairs are mixed last in the specification. Sums commute, so the 64-bit digest
 * may start with the pair that every length has; the 128-bit one xors in between and
 * must keep the order, innermost pair first. */
INLINE uint64_t hash64_17to128(const uint8_t *data, size_t length, uint64_t seed)
{
    const uint8_t *end = data + length;
    uint64_t acc = length * PRIME64_1 + mix16(data, 0, seed) + mix16(end - 16, 16, seed);
    if (length > 32) {
        acc += mix16(data + 16, 32, seed) + mix16(end - 32, 48, seed);
        if (length > 64) {
            acc += mix16(data + 32, 64, seed) + mix16(end - 48, 80, seed);
            if (length > 96)
                acc += mix16(data + 48, 96, seed) + mix16(end - 64, 112, seed);
        }
    }
    return avalanche(acc);
}

INLINE digest128 finish128(digest128 acc, size_t length, uint64_t seed)
{
    digest128 out;
    out.low = avalanche(acc.low + acc.high);
    out.high = 0 - avalanche(acc.low * PRIME64_1 + acc.high * PRIME64_4 + ((uint64_t)length - seed) * PRIME64_2);
    return out;
}

INLINE digest128 hash128_17to128(const uint8_t *data, size_t length, uint64_t seed)
{
    const uint8_t *end = data + length;
    digest128 acc = {length * PRIME64_1, 0};
    if (length > 32) {
        if (length > 64) {
            if (length > 96)
                mix32(&acc, data + 48, end - 64, 96, seed);
            mix32(&acc, data + 32, end - 48, 64, seed);
        }
        mix32(&acc, data + 16, end - 32, 32, seed);
    }
    mix32(&acc, data, end - 16, 0, seed);
    return finish128(acc, length, seed);
}

INLINE uint64_t hash64_129to240(const uint8_t *data, size_t length, uint64_t seed)
{
    uint64_t acc = length * PRIME64_1;
    uint64_t tail = mix16(data + length - 16, 119, seed);
    size_t chunks = length / 16;
    for (size_t i = 0; i < 8; i++)
        acc += mix16(data + 16 * i, 16 * i, seed);
    for (size_t i = 8; i < chunks; i++)
        tail += mix16(data + 16 * i, 16 * (i - 8) + 3, seed);
    return avalanche(avalanche(acc) + tail);
}

INLINE digest128 hash128_129to240(const uint8_t *data, size_t length, uint64_t seed)
{
    digest128 acc = {length * PRIME64_1, 0};
    size_t chunks = length / 32;
    for (size_t i = 0; i < 4; i++)
        mix32(&acc, data + 32 * i, data + 32 * i + 16, 32 * i, seed);
    acc.low = avalanche(acc.low);
    acc.high = avalanche(acc.high);
    for (size_t i = 4; i < chunks; i++)
        mix32(&acc, data + 32 * i, data + 32 * i + 16, 32 * (i - 4) + 3, seed);
    mix32(&acc, data + length - 16, data + length - 32, 103, 0 - seed);
    return finish128(acc, length, seed);
}

/* ---- above 240 bytes -------------------------------------------------------------- */

/* A kernel consumes the whole message, above 240 bytes: blocks, the last partial block,
 * the last stripe; `acc` is set to the result. It loads the initial values itself: were
 * they stored word by word and read back as one vector, the processor could not forward
 * the stores and would wait for them, some 10 ns for every message. */
static const uint64_t INITIAL[8] __attribute__((aligned(64))) = {
    PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1,
};

/* Stripe n of a block is keyed by secret[8n..8n+64), so most keys straddle a cache line.
 * Spread out to one line each they load at full speed: the kernels below read
 * 64 bytes of key for every 64 bytes of data. */
typedef struct {
    uint8_t stripe[STRIPES_PER_BLOCK][STRIPE];
    uint8_t scramble[STRIPE];
    uint8_t last[STRIPE];
} __attribute__((aligned(64))) long_keys;

static long_keys DEFAULT_KEYS; /* of SECRET; written once by the constructor below */

INLINE void spread_keys(long_keys *keys, const uint8_t secret[SECRET_SIZE])
{
    for (size_t n = 0; n < STRIPES_PER_BLOCK; n++)
        memcpy(keys->stripe[n], secret + 8 * n, STRIPE);
    memcpy(keys->scramble, secret + SECRET_SIZE - STRIPE, STRIPE);
    memcpy(keys->last, secret + SECRET_LAST_STRIPE, STRIPE);
}

typedef void long_kernel(uint64_t acc[8], const uint8_t *data, size_t length, const long_keys *keys);

INLINE void accumulate_scalar(uint64_t acc[8], const uint8_t *stripe, const uint8_t *key)
{
    for (int i = 0; i < 8; i++) {
        uint64_t word = read64(stripe + 8 * i);
        uint64_t keyed = word ^ read64(key + 8 * i);
        acc[i ^ 1] += word;
        acc[i] += (keyed & 0xFFFFFFFF) * (keyed >> 32);
    }
}

INLINE void scramble_scalar(uint64_t acc[8], const uint8_t *key)
{
    for (int i = 0; i < 8; i++) {
        acc[i] ^= acc[i] >> 47;
        acc[i] ^= read64(key + 8 * i);
        acc[i] *= PRIME32_1;
    }
}

static void long_scalar(uint64_t acc[8], const uint8_t *data, size_t length, const long_keys *keys)
{
    const uint8_t *last = data + length - STRIPE;
    memcpy(acc, INITIAL, sizeof INITIAL);
    for (; length > BLOCK; data += BLOCK, length -= BLOCK) {
        for (size_t n = 0; n < STRIPES_PER_BLOCK; n++)
            accumulate_scalar(acc, data + STRIPE * n, keys->stripe[n]);
        scramble_scalar(acc, keys->scramble);
    }
    for (size_t n = 0; n < (length - 1) / STRIPE; n++)
        accumulate_scalar(acc, data + STRIPE * n, keys->stripe[n]);
    accumulate_scalar(acc, last, keys->last);
}

/* The vector kernels rest on two observations about one block.
 *
 * Between scrambles an accumulator is a plain sum, so its order is free: the products and
 * the raw words go to separate registers, which shortens the dependent chain.
 * Words are added to the neighbouring lane (i ^ 1). Exchanging neighbours commutes with
 * adding, so the raw words are summed in place and exchanged once per block instead of
 * once per stripe.
 *
 * Multiplying by the 32-bit prime modulo 2^64 is two 32 x 32 products:
 * x * p = low(x) * p + (high(x) * p << 32).
 *
 * No software prefetch: on an AMD EPYC with AVX-512, 256 bytes to 2 KiB ahead won nothing
 * from 4 KiB to 4 MiB and lost up to 30 % on 64 MiB, which comes from memory. */

#if KM_CPU_X86

/* The compiler folds a load into each of its two uses; a load of a misaligned word costs
 * two cycles, so it is pinned in a register (4 KiB at an odd address: 15 % faster). */
#define LOAD_ONCE(word) __asm__("" : "+v"(word))

#define TARGET_AVX512 __attribute__((target("avx512f")))
#define TARGET_AVX2 __attribute__((target("avx2")))

/* ---- sse2: part of every x86-64 ---- */

typedef struct {
    __m128i products[4];
    __m128i words[4];
} state_sse2;

INLINE void stripe_sse2(state_sse2 *state, const uint8_t *stripe, const uint8_t *key)
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m128i word = _mm_loadu_si128((const __m128i *)(stripe + 16 * i));
        LOAD_ONCE(word);
        __m128i keyed = _mm_xor_si128(word, _mm_load_si128((const __m128i *)(key + 16 * i)));
        __m128i product = _mm_mul_epu32(keyed, _mm_srli_epi64(keyed, 32));
        state->products[i] = _mm_add_epi64(state->products[i], product);
        state->words[i] = _mm_add_epi64(state->words[i], word);
    }
}

INLINE void exchange_sse2(state_sse2 *state)
{
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m128i exchanged = _mm_shuffle_epi32(state->words[i], _MM_SHUFFLE(1, 0, 3, 2));
        state->products[i] = _mm_add_epi64(state->products[i], exchanged);
        state->words[i] = _mm_setzero_si128();
    }
}

INLINE void scramble_sse2(state_sse2 *state, const uint8_t *key)
{
    const __m128i prime = _mm_set1_epi64x(PRIME32_1);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m128i x = state->products[i];
        x = _mm_xor_si128(x, _mm_srli_epi64(x, 47));
        x = _mm_xor_si128(x, _mm_load_si128((const __m128i *)(key + 16 * i)));
        __m128i high = _mm_mul_epu32(_mm_srli_epi64(x, 32), prime);
        state->products[i] = _mm_add_epi64(_mm_mul_epu32(x, prime), _mm_slli_epi64(high, 32));
    }
}

static void long_sse2(uint64_t acc[8], const uint8_t *data, size_t length, const long_keys *keys)
{
    const uint8_t *last = data + length - STRIPE;
    state_sse2 state;
    for (int i = 0; i < 4; i++) {
        state.products[i] = _mm_load_si128((const __m128i *)(INITIAL + 2 * i));
        state.words[i] = _mm_setzero_si128();
    }
    for (; length > BLOCK; data += BLOCK, length -= BLOCK) {
#pragma GCC unroll 4
        for (size_t n = 0; n < STRIPES_PER_BLOCK; n++)
            stripe_sse2(&state, data + STRIPE * n, keys->stripe[n]);
        exchange_sse2(&state);
        scramble_sse2(&state, keys->scramble);
    }
    for (size_t n = 0; n < (length - 1) / STRIPE; n++)
        stripe_sse2(&state, data + STRIPE * n, keys->stripe[n]);
    stripe_sse2(&state, last, keys->last);
    exchange_sse2(&state);
    for (int i = 0; i < 4; i++)
        _mm_store_si128((__m128i *)(acc + 2 * i), state.products[i]);
}

/* ---- avx2 ---- */

typedef struct {
    __m256i products[2];
    __m256i words[2];
} state_avx2;

INLINE TARGET_AVX2 void stripe_avx2(state_avx2 *state, const uint8_t *stripe, const uint8_t *key)
{
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m256i word = _mm256_loadu_si256((const __m256i *)(stripe + 32 * i));
        LOAD_ONCE(word);
        __m256i keyed = _mm256_xor_si256(word, _mm256_load_si256((const __m256i *)(key + 32 * i)));
        __m256i product = _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32));
        state->products[i] = _mm256_add_epi64(state->products[i], product);
        state->words[i] = _mm256_add_epi64(state->words[i], word);
    }
}

INLINE TARGET_AVX2 void exchange_avx2(state_avx2 *state)
{
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m256i exchanged = _mm256_shuffle_epi32(state->words[i], _MM_SHUFFLE(1, 0, 3, 2));
        state->products[i] = _mm256_add_epi64(state->products[i], exchanged);
        state->words[i] = _mm256_setzero_si256();
    }
}

INLINE TARGET_AVX2 void scramble_avx2(state_avx2 *state, const uint8_t *key)
{
    const __m256i prime = _mm256_set1_epi64x(PRIME32_1);
#pragma GCC unroll 2
    for (int i = 0; i < 2; i++) {
        __m256i x = state->products[i];
        x = _mm256_xor_si256(x, _mm256_srli_epi64(x, 47));
        x = _mm256_xor_si256(x, _mm256_load_si256((const __m256i *)(key + 32 * i)));
        __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), prime);
        state->products[i] = _mm256_add_epi64(_mm256_mul_epu32(x, prime), _mm256_slli_epi64(high, 32));
    }
}

static TARGET_AVX2 void long_avx2(uint64_t acc[8], const uint8_t *data, size_t length, const long_keys *keys)
{
    const uint8_t *last = data + length - STRIPE;
    state_avx2 state;
    for (int i = 0; i < 2; i++) {
        state.products[i] = _mm256_load_si256((const __m256i *)(INITIAL + 4 * i));
        state.words[i] = _mm256_setzero_si256();
    }
    for (; length > BLOCK; data += BLOCK, length -= BLOCK) {
        /* All sixteen unrolled: 1.3 times slower on an AMD EPYC (family 25) from 4 to 64 KiB. */
#pragma GCC unroll 2
        for (size_t n = 0; n < STRIPES_PER_BLOCK; n++)
            stripe_avx2(&state, data + STRIPE * n, keys->stripe[n]);
        exchange_avx2(&state);
        scramble_avx2(&state, keys->scramble);
    }
    for (size_t n = 0; n < (length - 1) / STRIPE; n++)
        stripe_avx2(&state, data + STRIPE * n, keys->stripe[n]);
    stripe_avx2(&state, last, keys->last);
    exchange_avx2(&state);
    for (int i = 0; i < 2; i++)
        _mm256_store_si256((__m256i *)(acc + 4 * i), state.products[i]);
}

/* ---- avx512: a stripe is one register ---- */

typedef struct {
    __m512i products;
    __m512i words;
} state_avx512;

INLINE TARGET_AVX512 void stripe_avx512(state_avx512 *state, const uint8_t *stripe, const uint8_t *key)
{
    __m512i word = _mm512_loadu_si512(stripe);
    LOAD_ONCE(word);
    __m512i keyed = _mm512_xor_si512(word, _mm512_load_si512(key));
    __m512i product = _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32));
    state->products = _mm512_add_epi64(state->products, product);
    state->words = _mm512_add_epi64(state->words, word);
}

INLINE TARGET_AVX512 void exchange_avx512(state_avx512 *state)
{
    __m512i exchanged = _mm512_shuffle_epi32(state->words, _MM_PERM_BADC);
    state->products = _mm512_add_epi64(state->products, exchanged);
    state->words = _mm512_setzero_si512();
}

INLINE TARGET_AVX512 void scramble_avx512(state_avx512 *state, const uint8_t *key)
{
    const __m512i prime = _mm512_set1_epi64(PRIME32_1);
    const int xor_of_three = 0x96;
    __m512i x = state->products;
    x = _mm512_ternarylogic_epi64(x, _mm512_srli_epi64(x, 47), _mm512_load_si512(key), xor_of_three);
    __m512i high = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), prime);
    state->products = _mm512_add_epi64(_mm512_mul_epu32(x, prime), _mm512_slli_epi64(high, 32));
}

static TARGET_AVX512 void long_avx512(uint64_t acc[8], const uint8_t *data, size_t length, const long_keys *keys)
{
    const uint8_t *last = data + length - STRIPE;
    state_avx512 state = {_mm512_load_si512(INITIAL), _mm512_setzero_si512()};
    for (; length > BLOCK; data += BLOCK, length -= BLOCK) {
#pragma GCC unroll 16
        for (size_t n = 0; n < STRIPES_PER_BLOCK; n++)
            stripe_avx512(&state, data + STRIPE * n, keys->stripe[n]);
        exchange_avx512(&state);
        scramble_avx512(&state, keys->scramble);
    }
    for (size_t n = 0; n < (length - 1) / STRIPE; n++)
        stripe_avx512(&state, data + STRIPE * n, keys->stripe[n]);
    stripe_avx512(&state, last, keys->last);
    exchange_avx512(&state);
    _mm512_store_si512(acc, state.products);
}

#endif

#if KM_CPU_NEON

/* ---- neon: part of every aarch64 ---- */

typedef struct {
    uint64x2_t products[4];
    uint64x2_t words[4];
} state_neon;

INLINE uint64x2_t load_neon(const uint8_t *at)
{
    return vreinterpretq_u64_u8(vld1q_u8(at));
}

INLINE void stripe_neon(state_neon *state, const uint8_t *stripe, const uint8_t *key)
{
    for (int i = 0; i < 4; i++) {
        uint64x2_t word = load_neon(stripe + 16 * i);
        uint64x2_t keyed = veorq_u64(word, load_neon(key + 16 * i));
        state->products[i] = vmlal_u32(state->products[i], vmovn_u64(keyed), vshrn_n_u64(keyed, 32));
        state->words[i] = vaddq_u64(state->words[i], word);
    }
}

INLINE void exchange_neon(state_neon *state)
{
    for (int i = 0; i < 4; i++) {
        state->products[i] = vaddq_u64(state->products[i], vextq_u64(state->words[i], state->words[i], 1));
        state->words[i] = vdupq_n_u64(0);
    }
}

INLINE void scramble_neon(state_neon *state, const uint8_t *key)
{
    const uint32x2_t prime = vdup_n_u32(PRIME32_1);
    for (int i = 0; i < 4; i++) {
        uint64x2_t x = state->products[i];
        x = veorq_u64(x, vshrq_n_u64(x, 47));
        x = veorq_u64(x, load_neon(key + 16 * i));
        uint64x2_t high = vmull_u32(vshrn_n_u64(x, 32), prime);
        state->products[i] = vmlal_u32(vshlq_n_u64(high, 32), vmovn_u64(x), prime);
    }
}

static void long_neon(uint64_t acc[8], const uint8_t *data, size_t length, const long_keys *keys)
{
    const uint8_t *last = data + length - STRIPE;
    state_neon state;
    for (int i = 0; i < 4; i++) {
        state.products[i] = vld1q_u64(INITIAL + 2 * i);
        state.words[i] = vdupq_n_u64(0);
    }
    for (; length > BLOCK; data += BLOCK, length -= BLOCK) {
        for (size_t n = 0; n < STRIPES_PER_BLOCK; n++)
            stripe_neon(&state, data + STRIPE * n, keys->stripe[n]);
        exchange_neon(&state);
        scramble_neon(&state, keys->scramble);
    }
    for (size_t n = 0; n < (length - 1) / STRIPE; n++)
        stripe_neon(&state, data + STRIPE * n, keys->stripe[n]);
    stripe_neon(&state, last, keys->last);
    exchange_neon(&state);
    for (int i = 0; i < 4; i++)
        vst1q_u64(acc + 2 * i, state.products[i]);
}

#endif

/* ---- the choice of a kernel ------------------------------------------------------- */

static const struct {
    const char *name;
    long_kernel *run; /* NULL: not built */
} KERNELS[KM_XXH3_KERNELS] = {
    [KM_XXH3_SCALAR] = {"scalar", long_scalar},
#if KM_CPU_X86
    [KM_XXH3_SSE2] = {"sse2", long_sse2},
    [KM_XXH3_AVX2] = {"avx2", long_avx2},
    [KM_XXH3_AVX512] = {"avx512", long_avx512},
#else
    [KM_XXH3_SSE2] = {"sse2", NULL},
    [KM_XXH3_AVX2] = {"avx2", NULL},
    [KM_XXH3_AVX512] = {"avx512", NULL},
#endif
#if KM_CPU_NEON
    [KM_XXH3_NEON] = {"neon", long_neon},
#else
    [KM_XXH3_NEON] = {"neon", NULL},
#endif
};

/* Written once, by the constructor, before any other code of this object can run. */
static long_kernel *chosen_run = long_scalar;
static int chosen = KM_XXH3_SCALAR;
static int demand = KM_XXH3_USABLE;

const char *km_xxh3_kernel_name(int kernel)
{
    return kernel >= 0 && kernel < KM_XXH3_KERNELS ? KERNELS[kernel].name : NULL;
}

int km_xxh3_kernel_status(int kernel)
{
    if (kernel < 0 || kernel >= KM_XXH3_KERNELS)
        return KM_XXH3_UNKNOWN;
    if (!KERNELS[kernel].run)
        return KM_XXH3_NOT_BUILT;
    if ((kernel == KM_XXH3_AVX2 && !km_cpu_has_avx2()) || (kernel == KM_XXH3_AVX512 && !km_cpu_has_avx512f()))
        return KM_XXH3_UNSUPPORTED;
    return KM_XXH3_USABLE;
}

__attribute__((constructor)) static void choose_kernel(void)
{
    spread_keys(&DEFAULT_KEYS, SECRET);
    for (int kernel = 0; kernel < KM_XXH3_KERNELS; kernel++) /* in order of rising speed */
        if (km_xxh3_kernel_status(kernel) == KM_XXH3_USABLE)
            chosen = kernel;
    const char *name = getenv("KIMBERLITE_KERNEL");
    if (name && *name) {
        int wanted = 0;
        while (wanted < KM_XXH3_KERNELS && strcmp(KERNELS[wanted].name, name))
            wanted++;
        demand = km_xxh3_kernel_status(wanted);
        if (demand == KM_XXH3_USABLE)
            chosen = wanted;
    }
    chosen_run = KERNELS[chosen].run;
}

int km_xxh3_kernel(void)
{
    return chosen;
}

int km_xxh3_demand(void)
{
    return demand;
}

/* ---- putting it together ---------------------------------------------------------- */

/* What a long message is hashed with: the default, or derived from a seed. */
typedef struct {
    long_keys keys;
    uint8_t secret[SECRET_SIZE];
} derived;

static NOINLINE void derive(derived *out, uint64_t seed)
{
    for (int i = 0; i < SECRET_SIZE; i += 16) {
        uint64_t pair[2] = {read64(SECRET + i) + seed, read64(SECRET + i + 8) - seed};
        memcpy(out->secret + i, pair, sizeof pair);
    }
    spread_keys(&out->keys, out->secret);
}

INLINE uint64_t merge(const uint64_t acc[8], uint64_t initial, const uint8_t *secret)
{
    uint64_t sum = initial;
    for (int i = 0; i < 8; i += 2)
        sum += multiply_fold(acc[i] ^ read64(secret + 8 * i), acc[i + 1] ^ read64(secret + 8 * i + 8));
    return avalanche(sum);
}

INLINE uint64_t merge64(const uint64_t acc[8], size_t length, const uint8_t secret[SECRET_SIZE])
{
    return merge(acc, length * PRIME64_1, secret + SECRET_MERGE_LOW);
}

INLINE digest128 merge128(const uint64_t acc[8], size_t length, const uint8_t secret[SECRET_SIZE])
{
    digest128 out = {merge(acc, length * PRIME64_1, secret + SECRET_MERGE_LOW),
                     merge(acc, ~(length * PRIME64_2), secret + SECRET_MERGE_HIGH)};
    return out;
}

/* One function per class of lengths, reached by a jump: inlined into one another they
 * would all pay for the registers that the largest of them saves. The shortest class is
 * laid out without a taken branch, because only there would one be noticed (0.3 of 3 ns). */

INLINE void write_canonical(uint8_t out[16], digest128 digest)
{
    uint64_t words[2] = {__builtin_bswap64(digest.high), __builtin_bswap64(digest.low)};
    memcpy(out, words, sizeof words);
}

static NOINLINE uint64_t hash64_upto128(const uint8_t *data, size_t length)
{
    return hash64_17to128(data, length, 0);
}

static NOINLINE uint64_t hash64_upto240(const uint8_t *data, size_t length)
{
    return hash64_129to240(data, length, 0);
}

static NOINLINE uint64_t hash64_long(long_kernel *run, const uint8_t *data, size_t length)
{
    uint64_t acc[8] __attribute__((aligned(64)));
    run(acc, data, length, &DEFAULT_KEYS);
    return merge64(acc, length, SECRET);
}

static NOINLINE uint64_t hash64_seeded(long_kernel *run, const uint8_t *data, size_t length, uint64_t seed)
{
    if (length <= 16)
        return hash64_0to16(data, length, seed);
    if (length <= 128)
        return hash64_17to128(data, length, seed);
    if (length <= 240)
        return hash64_129to240(data, length, seed);
    uint64_t acc[8] __attribute__((aligned(64)));
    derived with;
    derive(&with, seed);
    run(acc, data, length, &with.keys);
    return merge64(acc, length, with.secret);
}

INLINE uint64_t hash64(long_kernel *run, const uint8_t *data, size_t length)
{
    if (FALL_THROUGH(length <= 16))
        return hash64_0to16(data, length, 0);
    if (length <= 128)
        return hash64_upto128(data, length);
    if (length <= 240)
        return hash64_upto240(data, length);
    return hash64_long(run, data, length);
}

static NOINLINE void hash128_upto128(const uint8_t *data, size_t length, uint8_t out[16])
{
    write_canonical(out, hash128_17to128(data, length, 0));
}

static NOINLINE void hash128_upto240(const uint8_t *data, size_t length, uint8_t out[16])
{
    write_canonical(out, hash128_129to240(data, length, 0));
}

static NOINLINE void hash128_long(long_kernel *run, const uint8_t *data, size_t length, uint8_t out[16])
{
    uint64_t acc[8] __attribute__((aligned(64)));
    run(acc, data, length, &DEFAULT_KEYS);
    write_canonical(out, merge128(acc, length, SECRET));
}

static NOINLINE digest128 hash128_seeded(long_kernel *run, const uint8_t *data, size_t length, uint64_t seed)
{
    if (length <= 16)
        return hash128_0to16(data, length, seed);
    if (length <= 128)
        return hash128_17to128(data, length, seed);
    if (length <= 240)
        return hash128_129to240(data, length, seed);
    uint64_t acc[8] __attribute__((aligned(64)));
    derived with;
    derive(&with, seed);
    run(acc, data, length, &with.keys);
    return merge128(acc, length, with.secret);
}

INLINE void hash128(long_kernel *run, const uint8_t *data, size_t length, uint8_t out[16])
{
    if (FALL_THROUGH(length <= 16))
        write_canonical(out, hash128_0to16(data, length, 0));
    else if (length <= 128)
        hash128_upto128(data, length, out);
    else if (length <= 240)
        hash128_upto240(data, length, out);
    else
        hash128_long(run, data, length, out);
}

/* ---- the functions of the header -------------------------------------------------- */

uint64_t km_xxh3_64(const void *data, size_t length)
{
    return hash64(chosen_run, data, length);
}

uint64_t km_xxh3_64_seeded(const void *data, size_t length, uint64_t seed)
{
    return seed ? hash64_seeded(chosen_run, data, length, seed) : hash64(chosen_run, data, length);
}

void km_xxh3_128(const void *data, size_t length, uint8_t out[16])
{
    hash128(chosen_run, data, length, out);
}

void km_xxh3_128_seeded(const void *data, size_t length, uint64_t seed, uint8_t out[16])
{
    if (seed)
        write_canonical(out, hash128_seeded(chosen_run, data, length, seed));
    else
        hash128(chosen_run, data, length, out);
}

uint64_t km_xxh3_64_with(int kernel, const void *data, size_t length, uint64_t seed)
{
    long_kernel *run = KERNELS[kernel].run;
    return seed ? hash64_seeded(run, data, length, seed) : hash64(run, data, length);
}

void km_xxh3_128_with(int kernel, const void *data, size_t length, uint64_t seed, uint8_t out[16])
{
    long_kernel *run = KERNELS[kernel].run;
    if (seed)
        write_canonical(out, hash128_seeded(run, data, length, seed));
    else
        hash128(run, data, length, out);
}
