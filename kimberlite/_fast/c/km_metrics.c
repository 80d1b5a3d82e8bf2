#define _GNU_SOURCE
#include "km_metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "km_xxh3.h"

#define PAGE 4096u

static uint64_t round_up(uint64_t value, uint64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

static uint64_t cell_words(uint8_t kind, uint32_t bound_count)
{
    return kind == KM_METRICS_HISTOGRAM ? 1 + bound_count + 1 + KM_METRICS_BINS : 1;
}

static uint64_t realtime_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t km_metrics_clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Of the constant part of the header and of everything between it and the cells. */
static void digest(const uint8_t *base, uint8_t out[16])
{
    const km_metrics_header *header = (const km_metrics_header *)base;
    uint8_t parts[32];

    km_xxh3_128(base, offsetof(km_metrics_header, checksum), parts);
    km_xxh3_128(base + sizeof *header, header->cells_offset - sizeof *header, parts + 16);
    km_xxh3_128(parts, sizeof parts, out);
}

/* Give every row its cells, group by group. Returns the size of the file. */
static uint64_t place_cells(const km_metrics_row *rows, uint32_t count, uint64_t cells_offset, km_metrics_slot *slots)
{
    uint64_t end = cells_offset;

    for (unsigned group = 0; group < 256; group++) {
        int any = 0;
        for (uint32_t i = 0; i < count; i++) {
            if (rows[i].group != group)
                continue;
            if (!any || rows[i].kind == KM_METRICS_HISTOGRAM)
                end = round_up(end, any ? 64 : KM_METRICS_APART);
            any = 1;
            slots[i].cell_offset = end;
            end += 8 * cell_words(rows[i].kind, rows[i].bound_count);
        }
        if (any)
            end += KM_METRICS_APART;
    }
    return round_up(end, PAGE);
}

static void fill(uint8_t *base, const km_metrics_header *header, const km_metrics_slot *slots,
                 const km_metrics_row *rows, const char *info)
{
    km_metrics_header *head = (km_metrics_header *)base;

    memcpy(head, header, sizeof *header);
    memcpy(base + sizeof *header, slots, header->slot_count * sizeof *slots);
    for (uint32_t i = 0; i < header->slot_count; i++) {
        memcpy(base + slots[i].name_offset, rows[i].name, rows[i].name_size);
        if (rows[i].kind == KM_METRICS_HISTOGRAM) {
            int64_t end = INT64_MAX;
            memcpy(base + slots[i].bounds_offset, rows[i].bounds, 8 * (size_t)rows[i].bound_count);
            memcpy(base + slots[i].bounds_offset + 8 * (size_t)rows[i].bound_count, &end, sizeof end);
        }
    }
    if (header->info_size)
        memcpy(base + header->info_offset, info, header->info_size);
    digest(base, head->checksum);
    km_atomic_store_release(&head->state, KM_METRICS_LIVE);
}

/* Lay out everything before the cells. Fills `slots` and all of the header but the checksum. */
static void plan(const km_metrics_row *rows, uint32_t count, size_t info_size, uint64_t bin_unit_ns,
                 km_metrics_header *header, km_metrics_slot *slots)
{
    uint64_t end = sizeof *header + count * sizeof *slots;

    for (uint32_t i = 0; i < count; i++) {
        slots[i].kind = rows[i].kind;
        slots[i].value = rows[i].value;
        slots[i].shared = rows[i].shared;
        slots[i].group = rows[i].group;
        slots[i].bound_count = rows[i].bound_count;
        if (rows[i].kind == KM_METRICS_HISTOGRAM) {
            slots[i].bounds_offset = end;
            end += 8 * ((uint64_t)rows[i].bound_count + 1);
        }
    }
    header->magic = KM_METRICS_MAGIC;
    header->layout = KM_METRICS_LAYOUT;
    header->slot_count = count;
    header->text_offset = end;
    for (uint32_t i = 0; i < count; i++) {
        slots[i].name_offset = end;
        slots[i].name_size = rows[i].name_size;
        end += rows[i].name_size;
    }
    header->info_offset = end;
    header->info_size = info_size;
    header->cells_offset = round_up(end + info_size, PAGE);
    header->file_size = place_cells(rows, count, header->cells_offset, slots);
    header->pid = (uint64_t)getpid();
    header->started_unix_ns = realtime_ns();
    header->started_monotonic_ns = km_metrics_clock_ns();
    header->bin_unit_ns = bin_unit_ns;
}

/* A new file of map->size zeros, mapped. On an error the file may be there: the caller removes it. */
static int map_new_file(int fd, km_metrics_map *map)
{
    struct stat status;
    int error;

    do
        error = posix_fallocate(fd, 0, (off_t)map->size);
    while (error == EINTR);
    if (error)
        return -error;
    if (fstat(fd, &status) != 0)
        return -errno;
    map->device = (uint64_t)status.st_dev;
    map->inode = (uint64_t)status.st_ino;
    map->base = mmap(NULL, map->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map->base == MAP_FAILED) {
        map->base = NULL;
        return -errno;
    }
    return 0;
}

static int create_anonymous(const km_metrics_header *header, const km_metrics_slot *slots, const km_metrics_row *rows,
                            const char *info, km_metrics_map *map)
{
    map->base = mmap(NULL, map->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map->base == MAP_FAILED) {
        map->base = NULL;
        return -errno;
    }
    fill(map->base, header, slots, rows, info);
    return 0;
}

static int create_file(const char *path, const char *temporary, const km_metrics_header *header,
                       const km_metrics_slot *slots, const km_metrics_row *rows, const char *info, km_metrics_map *map)
{
    int error, fd = open(temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return -errno;
    error = map_new_file(fd, map);
    close(fd);
    if (!error) {
        fill(map->base, header, slots, rows, info);
        if (rename(temporary, path) != 0)
            error = -errno;
    }
    if (error) {
        unlink(temporary);
        km_metrics_close(map);
    }
    return error;
}

int km_metrics_create(const char *path, const char *temporary, const km_metrics_row *rows, uint32_t count,
                      const char *info, size_t info_size, uint64_t bin_unit_ns, km_metrics_map *map)
{
    km_metrics_header header = {0};
    km_metrics_slot *slots = calloc(count ? count : 1, sizeof *slots);
    int error;

    if (!slots)
        return -ENOMEM;
    plan(rows, count, info_size, bin_unit_ns, &header, slots);
    *map = (km_metrics_map){.size = header.file_size};
    if (path)
        error = create_file(path, temporary, &header, slots, rows, info, map);
    else
        error = create_anonymous(&header, slots, rows, info, map);
    free(slots);
    return error;
}

static int inside(uint64_t offset, uint64_t size, uint64_t from, uint64_t to)
{
    return offset >= from && offset <= to && size <= to - offset;
}

static int is_zero(const uint8_t *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++)
        if (bytes[i])
            return 0;
    return 1;
}

/* Upper bounds that ascend from 0 or more and end with INT64_MAX, all before the cells. */
static int check_bounds(const uint8_t *base, const km_metrics_slot *slot, uint64_t from, uint64_t to)
{
    const int64_t *bounds;

    if (slot->bounds_offset % 8 || !inside(slot->bounds_offset, 8 * ((uint64_t)slot->bound_count + 1), from, to))
        return 0;
    bounds = (const int64_t *)(base + slot->bounds_offset);
    for (uint32_t i = 0; i < slot->bound_count; i++)
        if (bounds[i] < 0 || bounds[i] >= bounds[i + 1])
            return 0;
    return bounds[slot->bound_count] == INT64_MAX;
}

static int check_slot(const km_metrics_map *map, const km_metrics_slot *slot, uint64_t slots_end, uint64_t cells)
{
    if (slot->kind < KM_METRICS_COUNTER || slot->kind > KM_METRICS_HISTOGRAM || slot->value > KM_METRICS_FLOAT ||
        slot->shared > 1 || slot->bound_count > KM_METRICS_BOUNDS_MAX)
        return 0;
    if (!inside(slot->name_offset, slot->name_size, slots_end, cells))
        return 0;
    if (slot->cell_offset % 8 ||
        !inside(slot->cell_offset, 8 * cell_words(slot->kind, slot->bound_count), cells, map->size))
        return 0;
    if (slot->kind != KM_METRICS_HISTOGRAM)
        return slot->bound_count == 0 && slot->bounds_offset == 0;
    return check_bounds(map->base, slot, slots_end, cells);
}

/* Nothing is read through an offset before it is known to lead inside, nothing is believed before
 * the checksum has been compared. */
static int check(const km_metrics_map *map)
{
    const km_metrics_header *header = km_metrics_head(map);
    const km_metrics_slot *slots = km_metrics_slots(map);
    uint64_t slots_end, state, cells = header->cells_offset;
    uint8_t found[16];

    if (header->magic != KM_METRICS_MAGIC)
        return KM_METRICS_BAD_MAGIC;
    if (header->layout != KM_METRICS_LAYOUT)
        return KM_METRICS_BAD_LAYOUT_VERSION;
    slots_end = sizeof *header + (uint64_t)header->slot_count * sizeof *slots;
    if (header->file_size != map->size)
        return KM_METRICS_BAD_SIZE;
    if (cells % PAGE || cells > map->size || slots_end > cells)
        return KM_METRICS_BAD_BOUNDS;
    digest(map->base, found);
    if (memcmp(found, header->checksum, sizeof found) != 0)
        return KM_METRICS_BAD_CHECKSUM;
    state = km_atomic_load_relaxed(&header->state);
    if ((state != KM_METRICS_LIVE && state != KM_METRICS_ENDED) || !is_zero(header->reserved, sizeof header->reserved))
        return KM_METRICS_BAD_RESERVED;
    if (!inside(header->info_offset, header->info_size, slots_end, cells) || header->bin_unit_ns < 1 ||
        header->bin_unit_ns > KM_METRICS_BIN_UNIT_MAX)
        return KM_METRICS_BAD_BOUNDS;
    for (uint32_t i = 0; i < header->slot_count; i++)
        if (!check_slot(map, &slots[i], slots_end, cells))
            return KM_METRICS_BAD_BOUNDS;
    return KM_METRICS_OK;
}

int km_metrics_open(const char *path, km_metrics_map *map)
{
    struct stat status;
    /* Without waiting: the name may be that of a FIFO. */
    int result, fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    map->base = NULL;
    if (fd < 0)
        return -errno;
    if (fstat(fd, &status) != 0) {
        result = -errno;
        close(fd);
        return result;
    }
    if (status.st_size < (off_t)sizeof(km_metrics_header)) {
        close(fd);
        return KM_METRICS_BAD_SIZE;
    }
    map->size = (size_t)status.st_size;
    map->device = (uint64_t)status.st_dev;
    map->inode = (uint64_t)status.st_ino;
    map->base = mmap(NULL, map->size, PROT_READ, MAP_SHARED, fd, 0);
    result = map->base == MAP_FAILED ? -errno : 0;
    close(fd);
    if (result) {
        map->base = NULL;
        return result;
    }
    result = check(map);
    if (result)
        km_metrics_close(map);
    return result;
}

void km_metrics_close(km_metrics_map *map)
{
    if (map->base)
        munmap(map->base, map->size);
    map->base = NULL;
}

void km_metrics_reset(km_metrics_map *map)
{
    km_metrics_header *header = (km_metrics_header *)map->base;
    uint64_t generation = km_atomic_load_relaxed(&header->generation);
    km_atomic_u64 *cells = (km_atomic_u64 *)(map->base + header->cells_offset);

    km_atomic_store_relaxed(&header->generation, generation + 1);
    km_atomic_fence_release();
    for (size_t i = 0; i < (map->size - header->cells_offset) / 8; i++)
        km_atomic_store_relaxed(&cells[i], 0);
    km_atomic_store_release(&header->generation, generation + 2);
}

int km_metrics_copy(const km_metrics_map *map, uint64_t *out, int tries)
{
    static const struct timespec pause = {.tv_nsec = 1000000};
    const km_metrics_header *header = km_metrics_head(map);
    const km_atomic_u64 *cells = (const km_atomic_u64 *)(map->base + header->cells_offset);
    size_t words = (map->size - header->cells_offset) / 8;

    for (int i = 0; i < tries; i++) {
        uint64_t before;
        if (i > 0)
            nanosleep(&pause, NULL);
        before = km_atomic_load_acquire(&header->generation);
        if (before & 1)
            continue;
        for (size_t w = 0; w < words; w++)
            out[w] = km_atomic_load_relaxed(&cells[w]);
        km_atomic_fence_acquire();
        if (km_atomic_load_relaxed(&header->generation) == before)
            return 1;
    }
    return 0;
}

int km_metrics_is_current(const km_metrics_map *map, const char *path)
{
    struct stat status;

    return stat(path, &status) == 0 && (uint64_t)status.st_dev == map->device && (uint64_t)status.st_ino == map->inode;
}

static int64_t lower_end_of_step(uint32_t step)
{
    uint32_t octave = step >> KM_METRICS_OCTAVE_BITS;
    int64_t rest = step & ((1u << KM_METRICS_OCTAVE_BITS) - 1);

    return octave ? (rest + (1 << KM_METRICS_OCTAVE_BITS)) << (octave - 1) : rest;
}

/* The greatest whole number at or below unit * 2^(i/8), for results below 2^41. */
static int64_t power(uint64_t unit_ns, int32_t i)
{
    /* 2^(k/8), with more digits than a double holds. */
    static const double eighths[8] = {
        1.0,
        1.0905077326652576592,
        1.1892071150027210667,
        1.2968395546510096660,
        1.4142135623730950488,
        1.5422108254079408236,
        1.6817928305074290861,
        1.8340080864093424635,
    };
    double value = (double)unit_ns * eighths[(uint32_t)i & 7];

    for (int32_t octave = i >> 3; octave > 0; octave--)
        value *= 2;
    for (int32_t octave = i >> 3; octave < 0; octave++)
        value /= 2;
    return (int64_t)value;
}

void km_metrics_fill_bins(uint64_t unit_ns, km_metrics_bins *bins)
{
    uint32_t bin = 0;

    bins->first = -8 * 32; /* a second is less than 2^30 ns */
    while (power(unit_ns, bins->first) < 1)
        bins->first++;
    bins->bounds[0] = 0;
    for (uint32_t i = 1; i < KM_METRICS_BINS; i++)
        bins->bounds[i] = power(unit_ns, bins->first + (int32_t)i - 1);
    bins->bounds[KM_METRICS_BINS - 1] = INT64_MAX;
    for (uint32_t step = 0; step < KM_METRICS_STEPS; step++) {
        while (lower_end_of_step(step) > bins->bounds[bin])
            bin++;
        bins->hints[step] = (uint16_t)bin;
    }
}

void km_histogram_hints(const int64_t *bounds, uint8_t *hints)
{
    uint8_t bucket = 0;

    for (uint32_t step = 0; step < KM_METRICS_STEPS; step++) {
        while (lower_end_of_step(step) > bounds[bucket])
            bucket++;
        hints[step] = bucket;
    }
}

/* The compiler must not know what it points to: it would leave out what a region can not do without. */
#define OPAQUE(pointer) __asm__ volatile("" : "+r"(pointer) : : "memory")

static void time_histogram(const km_histogram *histogram, uint64_t n)
{
    uint64_t random = 88172645463325252ull;

    for (uint64_t i = 0; i < n; i++) {
        random ^= random << 13; /* xorshift: durations that no predictor learns */
        random ^= random >> 7;
        random ^= random << 17;
        km_histogram_observe(histogram, (int64_t)(random >> (36 + (random & 15))));
    }
}

uint64_t km_metrics_calibrate(int what, uint64_t n)
{
    static const int64_t bounds[] = {100000,   500000,   1000000,  2000000,   5000000,
                                     10000000, 25000000, 50000000, 100000000, INT64_MAX};
    km_atomic_u64 memory[KM_METRICS_BINS + 16] = {0};
    uint8_t hints[KM_METRICS_STEPS];
    km_metrics_bins scale;
    km_atomic_u64 *cells = memory;
    km_histogram scratch = {memory, memory + 1, memory + 11, bounds, hints, &scale, 0};
    const km_histogram *histogram = &scratch;
    int shared = what == KM_METRICS_TIME_SHARED_COUNTER;
    uint64_t began;

    km_histogram_hints(bounds, hints);
    km_metrics_fill_bins(1000000, &scale);
    OPAQUE(cells);
    OPAQUE(histogram);
    OPAQUE(shared);
    began = km_metrics_clock_ns();
    switch (what) {
    case KM_METRICS_TIME_STORE:
        for (uint64_t i = 0; i < n; i++) {
            _Atomic uint64_t *word = &cells[i & 7].opaque;
            atomic_store_explicit(word, atomic_load_explicit(word, memory_order_relaxed) + i, memory_order_relaxed);
        }
        break;
    case KM_METRICS_TIME_LOCKED:
        for (uint64_t i = 0; i < n; i++)
            atomic_fetch_add_explicit(&cells[i & 7].opaque, i, memory_order_relaxed);
        break;
    case KM_METRICS_TIME_HISTOGRAM:
        time_histogram(histogram, n);
        break;
    default:
        for (uint64_t i = 0; i < n; i++)
            km_metrics_add(&cells[i & 7], shared, i);
        break;
    }
    return km_metrics_clock_ns() - began;
}
