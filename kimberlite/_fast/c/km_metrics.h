/* Metrics in a file of shared memory: the writer adds, any process may look.
 *
 * Python-free C11. The file, all words little-endian and of 64 bits unless said:
 *
 *   0        header       km_metrics_header, 256 bytes
 *   256      slots        one km_metrics_slot of 64 bytes for each series
 *            bounds       upper bounds of histogram buckets, int64, each list ends with INT64_MAX
 *            text         names of the series, then `info` (what the writer says of itself)
 *   4096 n   cells        one word for a counter or gauge; for a histogram
 *                         sum | bound_count + 1 buckets | KM_METRICS_BINS exponential bins
 *
 * Everything before the cells is written once, before the file gets its name, and is covered by a
 * checksum; the cells are all that changes. So a reader needs no lock, and a writer that dies at
 * any point leaves a file that can be read. Cells of one writer group stand together, groups are
 * KM_METRICS_APART bytes apart: two threads that write never share a cache line.
 *
 * There is no order between cells: a snapshot may hold the effect of an event on one cell and not
 * yet on another. What must agree is derived: the count of a histogram is the sum of its buckets.
 */
#ifndef KM_METRICS_H
#define KM_METRICS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "km_atomic.h"

#define KM_METRICS_MAGIC 0x31304354454d4d4bull /* "KMMETC01" */
#define KM_METRICS_LAYOUT 2u
#define KM_METRICS_APART 128u /* two lines: processors fetch neighbours in pairs */

#define KM_METRICS_BOUNDS_MAX 255u /* a bucket's number fits one byte */

enum { KM_METRICS_COUNTER = 1, KM_METRICS_GAUGE = 2, KM_METRICS_HISTOGRAM = 3 };
enum { KM_METRICS_INTEGER = 0, KM_METRICS_FLOAT = 1 };
enum { KM_METRICS_LIVE = 1, KM_METRICS_ENDED = 2 };

/* Why a file cannot be opened; negative errno values stand beside these. */
enum {
    KM_METRICS_OK = 0,
    KM_METRICS_BAD_SIZE = 1, /* shorter than a header, or not as long as the header says */
    KM_METRICS_BAD_MAGIC = 2,
    KM_METRICS_BAD_LAYOUT_VERSION = 3,
    KM_METRICS_BAD_CHECKSUM = 4,
    KM_METRICS_BAD_BOUNDS = 5,   /* an offset leads outside of the file, or a bound is out of order */
    KM_METRICS_BAD_RESERVED = 6, /* a state that is none, or reserved bytes that are not zero */
};

typedef struct {
    uint64_t magic;
    uint32_t layout;
    uint32_t slot_count;
    uint64_t file_size;
    uint64_t text_offset;
    uint64_t info_offset;
    uint64_t info_size;
    uint64_t cells_offset;
    uint64_t pid;
    uint64_t started_unix_ns;
    uint64_t started_monotonic_ns;
    uint64_t bin_unit_ns; /* what the bins of all histograms are powers of 2^(1/8) of */
    uint8_t checksum[16]; /* XXH3-128 of the header up to here, then of [256, cells_offset) */
    /* From here on the header changes, and is outside of the checksum. */
    km_atomic_u64 generation; /* odd while the cells are being reset */
    km_atomic_u64 state;
    uint8_t reserved[256 - 120];
} km_metrics_header;

_Static_assert(sizeof(km_metrics_header) == 256, "the slots begin at 256");

typedef struct {
    uint64_t name_offset;
    uint32_t name_size;
    uint8_t kind;
    uint8_t value;  /* KM_METRICS_INTEGER or KM_METRICS_FLOAT */
    uint8_t shared; /* several threads write */
    uint8_t group;
    uint64_t cell_offset;
    uint64_t bounds_offset;
    uint32_t bound_count; /* without the INT64_MAX at the end */
    uint32_t reserved[7];
} km_metrics_slot;

_Static_assert(sizeof(km_metrics_slot) == 64, "a slot is 64 bytes of the file");

/* What the creator says of a series. */
typedef struct {
    const char *name;
    uint32_t name_size;
    uint8_t kind, value, shared, group;
    const int64_t *bounds; /* ascending from 0 or more, below INT64_MAX */
    uint32_t bound_count;
} km_metrics_row;

typedef struct {
    uint8_t *base;
    size_t size;
    uint64_t device, inode; /* of the file, to see whether its name now means another one */
} km_metrics_map;

/* bin_unit_ns: from 1 to KM_METRICS_BIN_UNIT_MAX.
 * Create the file under `path`: written under `temporary` (same directory, mode 0600, must not
 * exist) and renamed. Blocks are reserved, so that adding to a cell never meets a full file
 * system. path NULL: memory of this process without a file. 0 or a negative errno, and then nothing
 * is left behind. */
int km_metrics_create(const char *path, const char *temporary, const km_metrics_row *rows, uint32_t count,
                      const char *info, size_t info_size, uint64_t bin_unit_ns, km_metrics_map *map);

/* Map an existing file for reading and verify all but the cells. Whoever cuts the file short
 * afterwards kills its readers by SIGBUS; writers never do: a new file takes the name. */
int km_metrics_open(const char *path, km_metrics_map *map);

void km_metrics_close(km_metrics_map *map);

/* Zero all cells: for tests. No other thread may write meanwhile. */
void km_metrics_reset(km_metrics_map *map);

/* Copy the cells, each read once, into `out` (of map size - cells_offset bytes). Tries again,
 * after a millisecond, while a reset is under way. 1, or 0 when none of the tries came through:
 * with many tries, a writer died inside of a reset. */
int km_metrics_copy(const km_metrics_map *map, uint64_t *out, int tries);

/* 1 when `path` names the file of the map, 0 when another or none. */
int km_metrics_is_current(const km_metrics_map *map, const char *path);

/* Nanoseconds for `n` rounds of one of these, round robin over eight words. The first two are the
 * yardsticks, written without the functions of this file. */
enum {
    KM_METRICS_TIME_STORE = 0,  /* relaxed load and store */
    KM_METRICS_TIME_LOCKED = 1, /* relaxed fetch_add */
    KM_METRICS_TIME_COUNTER = 2,
    KM_METRICS_TIME_SHARED_COUNTER = 3,
    KM_METRICS_TIME_HISTOGRAM = 4, /* durations of 0 to 2^28 ns, each octave as often as the next */
};
uint64_t km_metrics_calibrate(int what, uint64_t n);

uint64_t km_metrics_clock_ns(void);

static inline const km_metrics_header *km_metrics_head(const km_metrics_map *map)
{
    return (const km_metrics_header *)map->base;
}

static inline const km_metrics_slot *km_metrics_slots(const km_metrics_map *map)
{
    return (const km_metrics_slot *)(map->base + sizeof(km_metrics_header));
}

/* Counters and gauges */

static inline void km_metrics_add(km_atomic_u64 *cell, int shared, uint64_t amount)
{
    if (shared)
        km_atomic_add_relaxed(cell, amount);
    else
        km_atomic_bump_relaxed(cell, amount);
}

static inline uint64_t km_metrics_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline double km_metrics_float(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline void km_metrics_add_float(km_atomic_u64 *cell, int shared, double amount)
{
    uint64_t seen = km_atomic_load_relaxed(cell);
    if (!shared) {
        km_atomic_store_relaxed(cell, km_metrics_bits(km_metrics_float(seen) + amount));
        return;
    }
    while (!km_atomic_exchange_if_relaxed(cell, &seen, km_metrics_bits(km_metrics_float(seen) + amount)))
        ;
}

/* Histograms
 *
 * Exponential bins, as the native histograms of Prometheus and the exponential ones of OpenTelemetry have them in
 * schema 3: bin i holds what is above unit * 2^((i-1)/8) and at or below unit * 2^(i/8). They are exact in one unit
 * only, that in which the metric is exposed: powers of 2^(1/8) of a millisecond are none of a second. A bin is at most
 * 2^(1/8) - 1 = 9.05 % wide, so that the harmonic mean of its ends is within 4.4 % of every value in it. Bin 0 of the
 * array holds 0, bin 1 the shortest duration there is, 1 ns; the range ends at 2^40 ns (18 minutes), and what is longer
 * counts in the last bin.
 *
 * A duration finds its bin and its classic bucket by its step: 16 to an octave, named by the exponent and the four bits
 * behind the leading one; below 16 a value is its own. A step is at most 1/16 wide: it holds the end of one bin at
 * most, and the bin of its lower end is a hint that is right or one too low. */
#define KM_METRICS_OCTAVE_BITS 4u
#define KM_METRICS_EXPONENTS 40u
#define KM_METRICS_STEPS ((KM_METRICS_EXPONENTS - KM_METRICS_OCTAVE_BITS + 1u) << KM_METRICS_OCTAVE_BITS)
#define KM_METRICS_BINS (8u * KM_METRICS_EXPONENTS + 2u)
#define KM_METRICS_BIN_UNIT_MAX 1000000000u /* a second */

/* The bins of a unit. */
typedef struct {
    int64_t bounds[KM_METRICS_BINS]; /* the greatest value of each; of the last INT64_MAX */
    uint16_t hints[KM_METRICS_STEPS]; /* for each step, the bin of its lower end */
    int32_t first; /* i of bin 1 of the array: see above */
} km_metrics_bins;

void km_metrics_fill_bins(uint64_t unit_ns, km_metrics_bins *bins);

typedef struct {
    km_atomic_u64 *sum;
    km_atomic_u64 *buckets;
    km_atomic_u64 *bins;
    const int64_t *bounds; /* ends with INT64_MAX */
    const uint8_t *hints;  /* for each step, the bucket of its lower end */
    const km_metrics_bins *scale;
    int shared;
} km_histogram;

static inline uint32_t km_metrics_step(uint64_t value)
{
    uint32_t exponent;
    if (value < (1u << KM_METRICS_OCTAVE_BITS))
        return (uint32_t)value;
    if (value >> KM_METRICS_EXPONENTS)
        return KM_METRICS_STEPS - 1;
    exponent = 63u - (uint32_t)__builtin_clzll(value) - KM_METRICS_OCTAVE_BITS;
    return (exponent << KM_METRICS_OCTAVE_BITS) + (uint32_t)(value >> exponent);
}

/* Fill `hints` (KM_METRICS_STEPS bytes) for a list of bounds; at most KM_METRICS_BOUNDS_MAX. */
void km_histogram_hints(const int64_t *bounds, uint8_t *hints);

static inline void km_histogram_observe(const km_histogram *histogram, int64_t value)
{
    uint64_t amount = value < 0 ? 0 : (uint64_t)value;
    uint32_t step = km_metrics_step(amount);
    uint32_t bucket = histogram->hints[step];
    uint32_t bin = histogram->scale->hints[step];
    /* Once at most where bounds are further apart than the width of a step. */
    while ((int64_t)amount > histogram->bounds[bucket])
        bucket++;
    /* Once at most below the end of the range. Without a branch: half of the steps hold the end of a bin. */
    bin += (int64_t)amount > histogram->scale->bounds[bin];
    while ((int64_t)amount > histogram->scale->bounds[bin])
        bin++;
    km_metrics_add(&histogram->buckets[bucket], histogram->shared, 1);
    km_metrics_add(&histogram->bins[bin], histogram->shared, 1);
    km_metrics_add(histogram->sum, histogram->shared, amount);
}

/* Where the time of one thread goes: at every moment exactly one stage is charged, so that the
 * stages add up to the time that has passed. Stage 0 is waiting; a turn is what lies between
 * two waits. */
#define KM_STAGES_MAX 16

typedef struct {
    km_atomic_u64 *stages[KM_STAGES_MAX]; /* nanoseconds */
    km_atomic_u64 *turned_at;             /* clock at the end of the last turn */
    km_histogram turn;
    uint64_t since, turn_began;
    uint32_t stage, stage_count;
} km_stage_clock;

/* Charge the time since the last call to the present stage and go to `stage`; returns the one left. */
static inline uint32_t km_stage_switch(km_stage_clock *clock, uint32_t stage, uint64_t now)
{
    uint32_t left = clock->stage;
    km_atomic_bump_relaxed(clock->stages[left], now - clock->since);
    clock->since = now;
    clock->stage = stage;
    if (left == 0 && stage != 0) {
        clock->turn_began = now;
    } else if (stage == 0 && left != 0) {
        km_histogram_observe(&clock->turn, (int64_t)(now - clock->turn_began));
        km_atomic_store_relaxed(clock->turned_at, now);
    }
    return left;
}

#endif
