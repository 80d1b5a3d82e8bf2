#include "km_frame.h"

#include <string.h>

#include "km_xxh3.h"

static const uint8_t MAGIC[4] = {'K', 'M', 'B', 'L'};
static const uint8_t ZEROS[7];

void km_frame_seal(km_header *header, const void *body, size_t body_length, const uint8_t *body_checksum)
{
    memcpy(header->magic, MAGIC, 4);
    header->version = KM_FORMAT_VERSION;
    header->size = (uint32_t)(KM_HEADER_SIZE + body_length);
    if (body_checksum)
        memcpy(header->checksum_body, body_checksum, 16);
    else
        km_xxh3_128(body, body_length, header->checksum_body);
    km_xxh3_128((const uint8_t *)header + 16, KM_HEADER_SIZE - 16, header->checksum);
}

int km_frame_check_header(const uint8_t *data, size_t length, uint32_t frame_max)
{
    km_header header;
    uint8_t digest[16];

    if (length < KM_HEADER_SIZE)
        return KM_FRAME_TRUNCATED;
    memcpy(&header, data, sizeof header);
    /* The magic before the checksum: it tells another protocol from a damaged frame. */
    if (memcmp(header.magic, MAGIC, 4) != 0)
        return KM_FRAME_BAD_MAGIC;
    km_xxh3_128(data + 16, KM_HEADER_SIZE - 16, digest);
    if (memcmp(digest, header.checksum, 16) != 0)
        return KM_FRAME_BAD_HEADER_CHECKSUM;
    if (header.version != KM_FORMAT_VERSION)
        return KM_FRAME_BAD_VERSION;
    if (header.command == 0)
        return KM_FRAME_BAD_COMMAND;
    if (header.size < KM_HEADER_SIZE || header.size > frame_max)
        return KM_FRAME_BAD_SIZE;
    if (memcmp(header.reserved, ZEROS, sizeof header.reserved) != 0)
        return KM_FRAME_BAD_RESERVED;
    return KM_FRAME_OK;
}

int km_frame_check_body(const uint8_t *header, const uint8_t *body, size_t length)
{
    uint8_t digest[16];

    km_xxh3_128(body, length, digest);
    return memcmp(digest, header + offsetof(km_header, checksum_body), 16) == 0 ? KM_FRAME_OK
                                                                               : KM_FRAME_BAD_BODY_CHECKSUM;
}

int km_frame_next(const uint8_t *data, size_t length, uint32_t frame_max, const uint8_t *cluster, size_t *size)
{
    uint32_t frame_size;
    int status;

    *size = 0;
    status = km_frame_check_header(data, length, frame_max);
    if (status != KM_FRAME_OK)
        return status;
    if (cluster && memcmp(data + offsetof(km_header, cluster), cluster, 16) != 0)
        return KM_FRAME_WRONG_CLUSTER;
    memcpy(&frame_size, data + offsetof(km_header, size), 4);
    *size = frame_size;
    if (length < frame_size)
        return KM_FRAME_TRUNCATED;
    return km_frame_check_body(data, data + KM_HEADER_SIZE, frame_size - KM_HEADER_SIZE);
}
