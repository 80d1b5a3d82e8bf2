/* Stands in for km_cpu.h (cc -include): an x86-64 processor of the year 2005. */
#ifndef KM_CPU_H
#define KM_CPU_H

#if defined(__x86_64__)
#define KM_CPU_X86 1
#else
#define KM_CPU_X86 0
#endif
#define KM_CPU_NEON 0

static inline int km_cpu_has_avx2(void)
{
    return 0;
}

static inline int km_cpu_has_avx512f(void)
{
    return 0;
}

#endif
