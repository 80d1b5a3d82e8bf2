#define _GNU_SOURCE
#include "km_append.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define IOV_BATCH 256
#define FILES_MAX 16 /* files one phase may touch before a sync is forced in between */
#define GROUP_MAX 64 /* submissions written together */

/* Inline again only when the latency is well below the bound: no flapping around it. */
#define RETURN_NUMERATOR 3
#define RETURN_DENOMINATOR 4

struct km_engine {
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake; /* for the thread: work or stop */
    pthread_cond_t idle; /* for flush: the queue is empty */
    km_submission *queue_head, *queue_tail;
    km_submission *done_head, *done_tail;
    int busy; /* the thread has submissions in hand */
    int stop;
    int sync_each;
    int event;
    uint64_t inline_below_ns;
    km_failure failure;
    km_engine_stats stats;
};

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Write all of iov to fd at offset, through short writes and interruptions. 0 or errno. */
static int write_all(int fd, uint64_t offset, struct iovec *iov, int count, uint64_t *calls)
{
    while (count > 0) {
        ssize_t written = pwritev(fd, iov, count, (off_t)offset);
        (*calls)++;
        if (written < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        if (written == 0)
            return EIO;
        offset += (uint64_t)written;
        while (count > 0 && (size_t)written >= iov->iov_len) {
            written -= (ssize_t)iov->iov_len;
            iov++;
            count--;
        }
        if (count > 0) {
            iov->iov_base = (char *)iov->iov_base + written;
            iov->iov_len -= (size_t)written;
        }
    }
    return 0;
}

/* The files a phase has touched and that still have to be synced. */
typedef struct {
    int fds[FILES_MAX];
    int count;
} file_set;

static int sync_files(file_set *files, km_failure *failure)
{
    for (int i = 0; i < files->count; i++) {
        if (fdatasync(files->fds[i]) != 0) {
            *failure = (km_failure){errno, files->fds[i], 0};
            return -1;
        }
    }
    files->count = 0;
    return 0;
}

static int note_file(file_set *files, int fd, km_failure *failure)
{
    for (int i = 0; i < files->count; i++)
        if (files->fds[i] == fd)
            return 0;
    if (files->count == FILES_MAX && sync_files(files, failure) != 0)
        return -1;
    files->fds[files->count++] = fd;
    return 0;
}

/* Phase `phase` of `count` submissions: neighbouring writes of a file share a system call. */
static int run_phase(km_submission **group, int count, uint32_t phase, int sync_each, km_engine_stats *stats,
                     km_failure *failure)
{
    struct iovec iov[IOV_BATCH];
    file_set files = {.count = 0};
    int pending = 0, fd = -1;
    uint64_t start = 0, end = 0;

    for (int s = 0; s <= count; s++) {
        uint32_t first = 0, last = 1;
        if (s < count) {
            first = phase ? group[s]->phase_ends[phase - 1] : 0;
            last = group[s]->phase_ends[phase];
        }
        for (uint32_t w = first; w < last; w++) {
            const km_write *write = s < count ? &group[s]->writes[w] : NULL;
            int joins = write && pending && pending < IOV_BATCH && write->fd == fd && write->offset == end;
            if (pending && !joins) {
                int error = write_all(fd, start, iov, pending, &stats->writes);
                if (error) {
                    *failure = (km_failure){error, fd, start};
                    return -1;
                }
                stats->bytes += end - start;
                if (sync_each && note_file(&files, fd, failure) != 0)
                    return -1;
                pending = 0;
            }
            if (!write)
                break;
            if (!pending) {
                fd = write->fd;
                start = end = write->offset;
            }
            iov[pending++] = (struct iovec){(void *)write->data, write->length};
            end += write->length;
        }
    }
    return sync_files(&files, failure);
}

/* Carry out submissions that have the same number of phases. 0, or -1 with *failure. */
static int run_group(km_engine *engine, km_submission **group, int count, km_engine_stats *stats, km_failure *failure)
{
    uint64_t latency = 0;

    for (uint32_t phase = 0; phase < group[0]->phase_count; phase++) {
        uint64_t before = now_ns(), took;
        if (run_phase(group, count, phase, engine->sync_each, stats, failure) != 0)
            return -1;
        took = now_ns() - before;
        latency = latency > took ? latency : took;
    }
    /* EWMA with weight 1/8; a phase of ten times the average counts in full at once: one
     * stall is reason enough to leave the loop alone. */
    if (latency > 10 * stats->latency_ns && stats->submissions > 16)
        stats->latency_ns = latency;
    else
        stats->latency_ns = stats->latency_ns - stats->latency_ns / 8 + latency / 8;
    for (int s = 0; s < count; s++) {
        group[s]->duration_ns = now_ns() - group[s]->submitted_ns;
        group[s]->sync_ns = s == 0 ? latency : 0;
    }
    stats->submissions += (uint64_t)count;
    stats->groups += count > 1;
    return 0;
}

/* The files a group writes, each with the one phase in which it may be written. */
typedef struct {
    struct {
        int fd;
        uint32_t phase;
    } seen[FILES_MAX];
    int count;
} phase_files;

/* Whether a submission may share its phases with the group. They run phase by phase: were a file
 * written in two phases, an older write could come after a newer one (a later copy of one superblock
 * update after the first copy of the next). Then it is carried out alone, after the group. */
static int may_share(phase_files *files, const km_submission *submission)
{
    for (uint32_t phase = 0, w = 0; phase < submission->phase_count; phase++) {
        for (; w < submission->phase_ends[phase]; w++) {
            int at = 0, fd = submission->writes[w].fd;
            while (at < files->count && files->seen[at].fd != fd)
                at++;
            if (at == FILES_MAX)
                return 0;
            if (at == files->count) {
                files->seen[at].fd = fd;
                files->seen[at].phase = phase;
                files->count++;
            }
            if (files->seen[at].phase != phase)
                return 0;
        }
    }
    return 1;
}

static void push_done(km_engine *engine, km_submission *submission)
{
    submission->next = NULL;
    if (engine->done_tail)
        engine->done_tail->next = submission;
    else
        engine->done_head = submission;
    engine->done_tail = submission;
}

static void signal_done(km_engine *engine)
{
    uint64_t one = 1;
    ssize_t ignored = write(engine->event, &one, sizeof one);
    (void)ignored; /* EAGAIN: the counter is at its maximum, and so readable */
}

static void *thread_main(void *argument)
{
    km_engine *engine = argument;
    km_submission *group[GROUP_MAX];

    pthread_mutex_lock(&engine->lock);
    for (;;) {
        int count = 0, shared = 1, result;
        phase_files files = {.count = 0};
        km_engine_stats stats;
        km_failure failure = {0, -1, 0};

        while (!engine->queue_head && !engine->stop)
            pthread_cond_wait(&engine->wake, &engine->lock);
        if (!engine->queue_head || engine->failure.error)
            break;
        while (engine->queue_head && count < GROUP_MAX && shared) {
            km_submission *next = engine->queue_head;
            shared = (!count || next->phase_count == group[0]->phase_count) && may_share(&files, next);
            if (count && !shared)
                break;
            group[count++] = next;
            engine->queue_head = next->next;
        }
        if (!engine->queue_head)
            engine->queue_tail = NULL;
        engine->busy = 1;
        stats = engine->stats;
        pthread_mutex_unlock(&engine->lock);

        result = run_group(engine, group, count, &stats, &failure);

        pthread_mutex_lock(&engine->lock);
        stats.queued = engine->stats.queued;
        stats.switches = engine->stats.switches;
        stats.inline_now = engine->stats.inline_now;
        engine->stats = stats;
        engine->busy = 0;
        if (result != 0)
            engine->failure = failure;
        else
            for (int s = 0; s < count; s++)
                push_done(engine, group[s]);
        engine->stats.queued -= (uint64_t)count;
        signal_done(engine);
        if (!engine->queue_head || result != 0)
            pthread_cond_broadcast(&engine->idle);
    }
    pthread_cond_broadcast(&engine->idle);
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}

km_engine *km_engine_new(int sync_each, uint64_t inline_below_ns)
{
    km_engine *engine = calloc(1, sizeof *engine);
    int error;

    if (!engine)
        return NULL;
    engine->sync_each = sync_each;
    engine->inline_below_ns = inline_below_ns;
    engine->failure.fd = -1;
    engine->stats.inline_now = inline_below_ns > 0;
    engine->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (engine->event < 0) {
        free(engine);
        return NULL;
    }
    pthread_mutex_init(&engine->lock, NULL);
    pthread_cond_init(&engine->wake, NULL);
    pthread_cond_init(&engine->idle, NULL);
    error = pthread_create(&engine->thread, NULL, thread_main, engine);
    if (error) {
        close(engine->event);
        free(engine);
        errno = error;
        return NULL;
    }
    pthread_setname_np(engine->thread, "km-disk");
    return engine;
}

void km_engine_free(km_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    engine->stop = 1;
    pthread_cond_signal(&engine->wake);
    pthread_mutex_unlock(&engine->lock);
    pthread_join(engine->thread, NULL);
    close(engine->event);
    pthread_mutex_destroy(&engine->lock);
    pthread_cond_destroy(&engine->wake);
    pthread_cond_destroy(&engine->idle);
    free(engine);
}

int km_engine_eventfd(const km_engine *engine)
{
    return engine->event;
}

/* Whether the next submission may be written inline; the lock is held. */
static int choose_inline(km_engine *engine)
{
    uint64_t bound = engine->inline_below_ns;
    int wanted;

    if (engine->queue_head || engine->busy)
        return 0; /* order: what is queued comes first */
    if (bound == 0 || bound == UINT64_MAX)
        wanted = bound != 0;
    else if (engine->stats.inline_now)
        wanted = engine->stats.latency_ns <= bound;
    else
        wanted = engine->stats.latency_ns <= bound / RETURN_DENOMINATOR * RETURN_NUMERATOR;
    if (wanted != engine->stats.inline_now) {
        engine->stats.inline_now = wanted;
        engine->stats.switches++;
    }
    return wanted;
}

void km_engine_submit(km_engine *engine, km_submission *submission)
{
    submission->next = NULL;
    submission->submitted_ns = now_ns();
    pthread_mutex_lock(&engine->lock);
    if (engine->failure.error) {
        /* nothing is ever written again; the failure is what collect's caller will see */
    } else if (choose_inline(engine)) {
        /* The thread is idle and only the caller submits: nobody else touches the engine meanwhile. */
        km_failure failure = {0, -1, 0};
        if (run_group(engine, &submission, 1, &engine->stats, &failure) == 0)
            push_done(engine, submission);
        else {
            engine->failure = failure;
            signal_done(engine);
        }
    } else {
        if (engine->queue_tail)
            engine->queue_tail->next = submission;
        else
            engine->queue_head = submission;
        engine->queue_tail = submission;
        engine->stats.queued++;
        pthread_cond_signal(&engine->wake);
    }
    pthread_mutex_unlock(&engine->lock);
}

km_submission *km_engine_collect(km_engine *engine)
{
    uint64_t ignored;
    km_submission *done;
    ssize_t result = read(engine->event, &ignored, sizeof ignored);

    (void)result; /* EAGAIN: nothing was signalled, inline completions need no signal */
    pthread_mutex_lock(&engine->lock);
    done = engine->done_head;
    engine->done_head = engine->done_tail = NULL;
    if (engine->failure.error)
        signal_done(engine); /* stays readable: whoever took completions this time learns of it the next */
    pthread_mutex_unlock(&engine->lock);
    return done;
}

void km_engine_flush(km_engine *engine)
{
    pthread_mutex_lock(&engine->lock);
    while ((engine->queue_head || engine->busy) && !engine->failure.error)
        pthread_cond_wait(&engine->idle, &engine->lock);
    pthread_mutex_unlock(&engine->lock);
}

km_failure km_engine_failure(km_engine *engine)
{
    km_failure failure;
    pthread_mutex_lock(&engine->lock);
    failure = engine->failure;
    pthread_mutex_unlock(&engine->lock);
    return failure;
}

km_engine_stats km_engine_read_stats(km_engine *engine)
{
    km_engine_stats stats;
    pthread_mutex_lock(&engine->lock);
    stats = engine->stats;
    pthread_mutex_unlock(&engine->lock);
    return stats;
}

uint64_t km_append_calibrate(int fd, uint64_t offset, const void *data, size_t size, uint32_t count)
{
    uint64_t start = now_ns();
    for (uint32_t i = 0; i < count; i++)
        if (pwrite(fd, data, size, (off_t)(offset + (uint64_t)i * size)) != (ssize_t)size)
            return 0;
    return now_ns() - start;
}
