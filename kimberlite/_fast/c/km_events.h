/* Event batches: one request body that carries N events.
 *
 *   count u32 | reserved u32 = 0 | offsets u32[count + 1] | zeros to 8 bytes | payload
 *
 * offsets are relative to the payload, offsets[0] = 0, ascending, offsets[count] = payload length.
 * Little-endian. Python-free; works on (pointer, length) and never reads past the length.
 */
#ifndef KM_EVENTS_H
#define KM_EVENTS_H

#include <stddef.h>
#include <stdint.h>

enum {
    KM_EVENTS_OK = 0,
    KM_EVENTS_TRUNCATED = -1, /* shorter than its own table says */
    KM_EVENTS_RESERVED = -2,  /* reserved or padding bytes are not zero */
    KM_EVENTS_OFFSETS = -3,   /* offsets do not ascend from 0 to the payload's length */
    KM_EVENTS_LARGE = -4,     /* an event is above the limit */
};

/* Where the payload of a batch of `count` events begins. */
static inline size_t km_events_payload(uint32_t count)
{
    return (8 + ((size_t)count + 1) * 4 + 7) & ~(size_t)7;
}

/* Bytes of a batch of `count` events with `payload` bytes in all. */
static inline size_t km_events_size(uint32_t count, size_t payload)
{
    return km_events_payload(count) + payload;
}

/* Check everything. *count is set when at least the table is whole. *bad is the number of the
 * event that is too large. */
int km_events_validate(const uint8_t *body, size_t length, uint32_t event_max, uint32_t *count, uint32_t *bad);

/* Offset of event i in a validated batch, from the start of the body; i may be count. */
size_t km_events_offset(const uint8_t *body, uint32_t count, uint32_t i);

/* How many newline-terminated lines stand in data, at most count_max of them and at most
 * bytes_max bytes without their newlines. *consumed: bytes up to and including the last newline. */
uint32_t km_events_count_lines(const uint8_t *data, size_t length, uint32_t count_max, size_t bytes_max,
                               size_t *payload, size_t *consumed);

/* Build a batch of the first `count` lines into `body`, which has km_events_size bytes. */
void km_events_build_lines(const uint8_t *data, uint32_t count, uint8_t *body);

#endif
