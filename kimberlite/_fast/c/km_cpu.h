/* What the processor can do, as seen by the kernels that are chosen at run time.
 *
 * Python-free, header only. Costs a CPUID per call: ask once and keep the answer.
 * __builtin_cpu_supports also checks XCR0, that is, that the operating system saves
 * the wider registers; the plain CPUID bits say nothing about that. */
#ifndef KM_CPU_H
#define KM_CPU_H

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "Kimberlite's kernels read and write little-endian words in place"
#endif

#if defined(__x86_64__)
#define KM_CPU_X86 1
#else
#define KM_CPU_X86 0
#endif

#if defined(__aarch64__) && defined(__ARM_NEON)
#define KM_CPU_NEON 1
#else
#define KM_CPU_NEON 0
#endif

static inline int km_cpu_has_avx2(void)
{
#if KM_CPU_X86
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") != 0;
#else
    return 0;
#endif
}

static inline int km_cpu_has_avx512f(void)
{
#if KM_CPU_X86
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") != 0;
#else
    return 0;
#endif
}

#endif
