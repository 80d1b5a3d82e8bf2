/* Checks of km_xxh3 that need exact buffers: run under AddressSanitizer and UBSan by
 * tests/fast/test_checksum.py.
 *
 *   check_xxh3          every kernel reads exactly its message and agrees with the scalar one
 *   check_xxh3 demand   print the kernel in use and how KIMBERLITE_KERNEL's demand went */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "km_xxh3.h"

enum { LENGTH_MAX = 2200, OFFSET_MAX = 64 };

static const uint64_t SEEDS[] = {0, 1, UINT64_C(0x9E3779B185EBCA8D)};

static uint8_t pattern(size_t i)
{
    return (uint8_t)((i * 2654435761u) >> 13);
}

/* Both digests by `kernel` of a message that fills its allocation from `offset` to the end:
 * AddressSanitizer sees any read past its end and, with offset 0, any before its start. */
static void digests(int kernel, size_t length, size_t offset, uint64_t seed, uint8_t out[24])
{
    uint8_t *block = malloc(length + offset);
    if (!block && length + offset)
        abort();
    for (size_t i = 0; i < length; i++)
        block[offset + i] = pattern(i);
    uint64_t word = km_xxh3_64_with(kernel, block ? block + offset : NULL, length, seed);
    memcpy(out, &word, sizeof word);
    km_xxh3_128_with(kernel, block ? block + offset : NULL, length, seed, out + 8);
    free(block);
}

static int check(int kernel, size_t length, size_t offset, uint64_t seed)
{
    uint8_t expected[24], got[24];
    digests(KM_XXH3_SCALAR, length, 0, seed, expected);
    digests(kernel, length, offset, seed, got);
    if (!memcmp(expected, got, sizeof got))
        return 0;
    printf("kernel %s: %zu bytes at offset %zu, seed %llu: digests differ\n", km_xxh3_kernel_name(kernel), length,
           offset, (unsigned long long)seed);
    return 1;
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "demand")) {
        printf("%s %d\n", km_xxh3_kernel_name(km_xxh3_kernel()), km_xxh3_demand());
        return 0;
    }
    int failures = 0;
    for (int kernel = 0; kernel < KM_XXH3_KERNELS; kernel++) {
        if (km_xxh3_kernel_status(kernel) != KM_XXH3_USABLE)
            continue;
        for (size_t length = 0; length <= LENGTH_MAX; length++)
            for (size_t s = 0; s < sizeof SEEDS / sizeof *SEEDS; s++)
                failures += check(kernel, length, 0, SEEDS[s]);
        for (size_t offset = 0; offset < OFFSET_MAX; offset++)
            for (size_t length = 0; length <= LENGTH_MAX; length += 61)
                failures += check(kernel, length, offset, 0);
        printf("%s\n", km_xxh3_kernel_name(kernel));
    }
    if (km_xxh3_kernel_status(-1) != KM_XXH3_UNKNOWN || km_xxh3_kernel_status(KM_XXH3_KERNELS) != KM_XXH3_UNKNOWN)
        failures++;
    if (km_xxh3_kernel_name(-1) || km_xxh3_kernel_name(KM_XXH3_KERNELS))
        failures++;
    uint8_t plain[16], seeded[16];
    km_xxh3_128(SEEDS, sizeof SEEDS, plain);
    km_xxh3_128_seeded(SEEDS, sizeof SEEDS, 0, seeded);
    if (memcmp(plain, seeded, 16) || km_xxh3_64(SEEDS, sizeof SEEDS) != km_xxh3_64_seeded(SEEDS, sizeof SEEDS, 0))
        failures++;
    return failures != 0;
}
