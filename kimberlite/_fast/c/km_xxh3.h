/* XXH3-64 and XXH3-128 of one contiguous message, from the published specification
 * (xxHash, doc/xxhash_spec.md), with the default secret. No streaming, no custom secret.
 *
 * Python-free; no allocation, no locks, no errors; safe from any thread. `data` may be
 * NULL when `length` is 0, has no alignment requirement, and nothing outside of
 * data[0..length) is read. XXH3 detects accidents; it resists no attacker.
 *
 * Messages above 240 bytes run in a vector kernel. The best one that this processor has
 * is chosen when the object is loaded; KIMBERLITE_KERNEL=<name> in the environment
 * demands another. A demand that cannot be met leaves the best kernel in place and is
 * reported by km_xxh3_demand(): callers must refuse to go on. */
#ifndef KM_XXH3_H
#define KM_XXH3_H

#include <stddef.h>
#include <stdint.h>

enum {
    KM_XXH3_SCALAR = 0,
    KM_XXH3_SSE2 = 1,
    KM_XXH3_AVX2 = 2,
    KM_XXH3_AVX512 = 3,
    KM_XXH3_NEON = 4,
    KM_XXH3_KERNELS = 5,
};

enum {
    KM_XXH3_USABLE = 0,
    KM_XXH3_UNKNOWN = -1,     /* no kernel has this number or name */
    KM_XXH3_NOT_BUILT = -2,   /* it belongs to another processor architecture */
    KM_XXH3_UNSUPPORTED = -3, /* built, but this processor or system lacks the instructions */
};

/* The digest with seed 0. */
uint64_t km_xxh3_64(const void *data, size_t length);

/* The same with a seed. Above 240 bytes a seed other than 0 costs some 20 ns more. */
uint64_t km_xxh3_64_seeded(const void *data, size_t length, uint64_t seed);

/* The 128-bit digest with seed 0 in canonical form: 16 bytes, most significant first. */
void km_xxh3_128(const void *data, size_t length, uint8_t out[16]);
void km_xxh3_128_seeded(const void *data, size_t length, uint64_t seed, uint8_t out[16]);

/* The kernel in use: one of KM_XXH3_SCALAR... */
int km_xxh3_kernel(void);

/* Name of a kernel ("scalar"), NULL if there is no such number. */
const char *km_xxh3_kernel_name(int kernel);

/* KM_XXH3_USABLE or why not. */
int km_xxh3_kernel_status(int kernel);

/* How the demand in the environment went: KM_XXH3_USABLE (also without any demand) or
 * why it could not be met. */
int km_xxh3_demand(void);

/* For tests and benchmarks: the digest by one kernel, which must be usable. */
uint64_t km_xxh3_64_with(int kernel, const void *data, size_t length, uint64_t seed);
void km_xxh3_128_with(int kernel, const void *data, size_t length, uint64_t seed, uint8_t out[16]);

#endif
