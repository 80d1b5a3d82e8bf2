/* The write engine of the journal: ordered, durable, coalesced writes.
 *
 * Python-free C11. A submission is a list of phases; a phase begins only when the one before it
 * is durable; submissions are carried out in the order in which they came, one after
 * another. Two ways to carry them out, behind one interface:
 *
 *   inline   in the caller's thread, while writes have been quick and nothing is queued:
 *            two context switches cost more than a write of 0.1 ms
 *   thread   on one disk thread, so that a slow disk keeps nobody from the network;
 *            what waits meanwhile is written together, phase by phase (group commit), as
 *            long as no file is written in two different phases of the group
 *
 * The first error is final: nothing is written after it, ever, and it is never retried.
 */
#ifndef KM_APPEND_H
#define KM_APPEND_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    int fd;
    uint64_t offset;
    const void *data;
    size_t length;
} km_write;

typedef struct km_submission {
    int64_t token;
    uint32_t phase_count;
    uint32_t *phase_ends; /* index into writes behind the last write of each phase */
    km_write *writes;
    uint64_t submitted_ns;
    uint64_t duration_ns; /* from submission to durability */
    uint64_t sync_ns;     /* slowest phase of the group that this submission was the first of; 0 for the others */
    struct km_submission *next;
} km_submission;

typedef struct km_engine km_engine;

typedef struct {
    int error;       /* errno, 0 while all is well */
    int fd;          /* where it happened */
    uint64_t offset;
} km_failure;

typedef struct {
    uint64_t writes;      /* system calls */
    uint64_t bytes;
    uint64_t submissions;
    uint64_t groups;      /* runs of the thread over several submissions */
    uint64_t switches;    /* between inline and thread */
    uint64_t latency_ns;  /* EWMA of one phase */
    uint64_t queued;      /* submissions not yet durable */
    int inline_now;
} km_engine_stats;

/* sync_each: fdatasync every file a phase touched (for files without O_DSYNC).
 * inline_below_ns: write inline while the observed latency is below; 0 never, UINT64_MAX always.
 * Returns NULL with errno set when the thread or the eventfd can not be made. */
km_engine *km_engine_new(int sync_each, uint64_t inline_below_ns);

/* Wait for everything queued, end the thread, free. Submissions not collected are lost. */
void km_engine_free(km_engine *engine);

/* Readable when completions of the thread wait to be collected, and for good after a failure. */
int km_engine_eventfd(const km_engine *engine);

/* The caller keeps the submission and its memory until it is collected. */
void km_engine_submit(km_engine *engine, km_submission *submission);

/* Durable submissions in order, as a list; NULL when there are none. Clears the eventfd,
 * unless something failed. */
km_submission *km_engine_collect(km_engine *engine);

/* Block until nothing is queued, or something failed. */
void km_engine_flush(km_engine *engine);

km_failure km_engine_failure(km_engine *engine);
km_engine_stats km_engine_read_stats(km_engine *engine);

/* The yardstick of the benchmarks: `count` writes of `size` bytes, one after another, to fd from
 * `offset` on. Returns the nanoseconds it took, 0 on an error. */
uint64_t km_append_calibrate(int fd, uint64_t offset, const void *data, size_t size, uint32_t count);

#endif
