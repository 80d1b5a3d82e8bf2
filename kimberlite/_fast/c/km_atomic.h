/* C11 atomics behind opaque structs: the memory order is part of every name.
 *
 * Header only, Python-free. The structs live in memory shared between processes, so they
 * must be lock-free: a lock inside would be private to one process.
 *
 *   relaxed   no order towards other memory: statistics
 *   acquire / release   what was written before the release is seen after the acquire
 *   bump      load and store, not one step: for a cell that one thread writes. Costs what a
 *             plain addition costs; a locked one costs some twenty times as much.
 */
#ifndef KM_ATOMIC_H
#define KM_ATOMIC_H

#include <stdatomic.h>
#include <stdint.h>

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_LONG_LOCK_FREE == 2, "64-bit atomics are lock-free");

typedef struct {
    _Atomic uint64_t opaque;
} km_atomic_u64;

_Static_assert(sizeof(km_atomic_u64) == 8, "a cell is one word of the shared file");

static inline uint64_t km_atomic_load_relaxed(const km_atomic_u64 *cell)
{
    return atomic_load_explicit(&cell->opaque, memory_order_relaxed);
}

static inline uint64_t km_atomic_load_acquire(const km_atomic_u64 *cell)
{
    return atomic_load_explicit(&cell->opaque, memory_order_acquire);
}

static inline void km_atomic_store_relaxed(km_atomic_u64 *cell, uint64_t value)
{
    atomic_store_explicit(&cell->opaque, value, memory_order_relaxed);
}

static inline void km_atomic_store_release(km_atomic_u64 *cell, uint64_t value)
{
    atomic_store_explicit(&cell->opaque, value, memory_order_release);
}

static inline void km_atomic_add_relaxed(km_atomic_u64 *cell, uint64_t amount)
{
    atomic_fetch_add_explicit(&cell->opaque, amount, memory_order_relaxed);
}

static inline void km_atomic_bump_relaxed(km_atomic_u64 *cell, uint64_t amount)
{
    km_atomic_store_relaxed(cell, km_atomic_load_relaxed(cell) + amount);
}

/* 1 when the cell held *expected and now holds desired; otherwise *expected is what it held. */
static inline int km_atomic_exchange_if_relaxed(km_atomic_u64 *cell, uint64_t *expected, uint64_t desired)
{
    return atomic_compare_exchange_weak_explicit(&cell->opaque, expected, desired, memory_order_relaxed,
                                                 memory_order_relaxed);
}

static inline void km_atomic_fence_acquire(void)
{
    atomic_thread_fence(memory_order_acquire);
}

static inline void km_atomic_fence_release(void)
{
    atomic_thread_fence(memory_order_release);
}

#endif
