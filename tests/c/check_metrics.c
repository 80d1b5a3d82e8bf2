/* Threads without the GIL on one region: what is shared loses nothing, what is not is its owner's.
 *
 *   check_metrics PATH THREADS ROUNDS
 *
 * Makes a region of: 0 shared counter | 1 shared float counter | 2 shared histogram | 3 shared gauge,
 * then one counter of its own (group 1, 2, ...) for each thread. Meanwhile the main thread reads
 * the file as another process would. Silent and 0 when all is well; the caller checks the totals. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "km_metrics.h"

#define THREADS_MAX 16

static const int64_t BOUNDS[] = {10, 1000, 100000};

static km_metrics_map map;
static uint8_t hints[KM_METRICS_STEPS];
static km_metrics_bins scale;
static uint64_t rounds;
static int running;

static km_atomic_u64 *cell(uint32_t slot)
{
    return (km_atomic_u64 *)(map.base + km_metrics_slots(&map)[slot].cell_offset);
}

static km_histogram shared_histogram(void)
{
    const km_metrics_slot *slot = &km_metrics_slots(&map)[2];
    km_atomic_u64 *sum = cell(2);
    return (km_histogram){sum, sum + 1, sum + 2 + slot->bound_count, (const int64_t *)(map.base + slot->bounds_offset),
                          hints, &scale, slot->shared};
}

static void *work(void *argument)
{
    uint32_t number = (uint32_t)(uintptr_t)argument;
    km_histogram histogram = shared_histogram();

    for (uint64_t i = 0; i < rounds; i++) {
        km_metrics_add(cell(0), 1, 3);
        km_metrics_add_float(cell(1), 1, 0.5);
        km_histogram_observe(&histogram, (int64_t)(i % 200000));
        km_metrics_add(cell(3), 1, i & 1 ? 1 : (uint64_t)-1);
        km_metrics_add(cell(4 + number), 0, 1);
    }
    __atomic_sub_fetch(&running, 1, __ATOMIC_RELEASE);
    return NULL;
}

/* A counter never falls, and no more is in the file than has been recorded. */
static int watch(const char *path, uint64_t most)
{
    km_metrics_map seen;
    uint64_t *cells, before = 0, passes = 0;
    size_t at;
    int status = km_metrics_open(path, &seen);

    if (status) {
        fprintf(stderr, "open: %d\n", status);
        return 1;
    }
    cells = malloc(seen.size - km_metrics_head(&seen)->cells_offset);
    if (!cells)
        return 1;
    at = (km_metrics_slots(&seen)[0].cell_offset - km_metrics_head(&seen)->cells_offset) / 8;
    do {
        passes++;
        if (!km_metrics_copy(&seen, cells, 1) || cells[at] < before || cells[at] > most) {
            fprintf(stderr, "pass %llu: %llu after %llu\n", (unsigned long long)passes, (unsigned long long)cells[at],
                    (unsigned long long)before);
            return 1;
        }
        before = cells[at];
    } while (__atomic_load_n(&running, __ATOMIC_ACQUIRE));
    free(cells);
    km_metrics_close(&seen);
    return 0;
}

int main(int argc, char **argv)
{
    km_metrics_row rows[4 + THREADS_MAX] = {
        {"counter", 7, KM_METRICS_COUNTER, KM_METRICS_INTEGER, 1, 0, NULL, 0},
        {"float", 5, KM_METRICS_COUNTER, KM_METRICS_FLOAT, 1, 0, NULL, 0},
        {"histogram", 9, KM_METRICS_HISTOGRAM, KM_METRICS_INTEGER, 1, 0, BOUNDS, 3},
        {"gauge", 5, KM_METRICS_GAUGE, KM_METRICS_INTEGER, 1, 0, NULL, 0},
    };
    char names[THREADS_MAX][16], temporary[4096];
    pthread_t threads[THREADS_MAX];
    int count, failed;

    if (argc != 4 || (count = atoi(argv[2])) < 1 || count > THREADS_MAX)
        return 2;
    rounds = strtoull(argv[3], NULL, 10);
    for (int i = 0; i < count; i++) {
        uint32_t size = (uint32_t)snprintf(names[i], sizeof names[i], "own %d", i);
        rows[4 + i] =
            (km_metrics_row){names[i], size, KM_METRICS_COUNTER, KM_METRICS_INTEGER, 0, (uint8_t)(1 + i), NULL, 0};
    }
    snprintf(temporary, sizeof temporary, "%s.new", argv[1]);
    failed = km_metrics_create(argv[1], temporary, rows, (uint32_t)(4 + count), "", 0, 1000000, &map);
    if (failed) {
        fprintf(stderr, "create: %d\n", failed);
        return 1;
    }
    km_histogram_hints((const int64_t *)(map.base + km_metrics_slots(&map)[2].bounds_offset), hints);
    km_metrics_fill_bins(1000000, &scale);
    running = count;
    for (int i = 0; i < count; i++)
        if (pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)i))
            return 1;
    failed = watch(argv[1], 3 * rounds * (uint64_t)count);
    for (int i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
    km_metrics_close(&map);
    return failed;
}
