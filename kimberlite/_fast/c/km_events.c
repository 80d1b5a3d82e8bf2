#define _GNU_SOURCE
#include "km_events.h"

#include <string.h>

static uint32_t load32(const uint8_t *data)
{
    uint32_t value;
    memcpy(&value, data, 4);
    return value;
}

static void store32(uint8_t *data, uint32_t value)
{
    memcpy(data, &value, 4);
}

int km_events_validate(const uint8_t *body, size_t length, uint32_t event_max, uint32_t *count, uint32_t *bad)
{
    size_t payload, table_end, payload_length;
    uint32_t events, previous = 0;

    *count = 0;
    *bad = 0;
    if (length < 12)
        return KM_EVENTS_TRUNCATED;
    events = load32(body);
    payload = km_events_payload(events);
    if (payload > length)
        return KM_EVENTS_TRUNCATED;
    *count = events;
    if (load32(body + 4) != 0)
        return KM_EVENTS_RESERVED;
    table_end = 8 + ((size_t)events + 1) * 4;
    for (size_t i = table_end; i < payload; i++)
        if (body[i] != 0)
            return KM_EVENTS_RESERVED;
    payload_length = length - payload;
    if (load32(body + 8) != 0 || load32(body + table_end - 4) != payload_length)
        return KM_EVENTS_OFFSETS;
    for (uint32_t i = 1; i <= events; i++) {
        uint32_t next = load32(body + 8 + (size_t)i * 4);
        if (next < previous || next > payload_length)
            return KM_EVENTS_OFFSETS;
        if (next - previous > event_max) {
            *bad = i - 1;
            return KM_EVENTS_LARGE;
        }
        previous = next;
    }
    return KM_EVENTS_OK;
}

size_t km_events_offset(const uint8_t *body, uint32_t count, uint32_t i)
{
    return km_events_payload(count) + load32(body + 8 + (size_t)i * 4);
}

uint32_t km_events_count_lines(const uint8_t *data, size_t length, uint32_t count_max, size_t bytes_max,
                               size_t *payload, size_t *consumed)
{
    uint32_t count = 0;
    size_t at = 0;

    *payload = 0;
    while (count < count_max && at < length) {
        const uint8_t *newline = memchr(data + at, '\n', length - at);
        size_t line;
        if (!newline)
            break;
        line = (size_t)(newline - data) - at;
        if (*payload + line > bytes_max)
            break;
        *payload += line;
        at += line + 1;
        count++;
    }
    *consumed = at;
    return count;
}

void km_events_build_lines(const uint8_t *data, uint32_t count, uint8_t *body)
{
    size_t start = km_events_payload(count);
    size_t table_end = 8 + ((size_t)count + 1) * 4;
    uint8_t *to = body + start;
    uint32_t offset = 0;

    store32(body, count);
    store32(body + 4, 0);
    store32(body + 8, 0);
    memset(body + table_end, 0, start - table_end);
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *newline = rawmemchr(data, '\n');
        size_t line = (size_t)(newline - data);
        memcpy(to + offset, data, line);
        offset += (uint32_t)line;
        store32(body + 8 + ((size_t)i + 1) * 4, offset);
        data = newline + 1;
    }
}
