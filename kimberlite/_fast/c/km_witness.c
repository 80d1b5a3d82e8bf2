#include "km_witness.h"

#include <string.h>

#include "km_frame.h"
#include "km_xxh3.h"

enum {
    OFFSET_SEGMENT = KM_HEADER_SIZE + 8, /* behind the offset of the entry */
    OFFSET_INDEX = OFFSET_SEGMENT + 4,
    OFFSET_UNUSED = OFFSET_INDEX + 4,
    OFFSET_SUM = KM_WITNESS_RECORD - 16,
    FRAME_MAX = 64 << 20, /* as for frames whose receiver sets no limit */
};

static const uint8_t UNUSED[OFFSET_SUM - OFFSET_UNUSED];

int km_witness_holds(const uint8_t *record, uint32_t segment, uint32_t index, uint64_t op)
{
    uint8_t digest[16];
    uint32_t place[2];
    km_header header;

    km_xxh3_128(record, OFFSET_SUM, digest);
    if (memcmp(digest, record + OFFSET_SUM, 16) != 0)
        return 0;
    memcpy(place, record + OFFSET_SEGMENT, sizeof place);
    if (place[0] != segment || place[1] != index || memcmp(record + OFFSET_UNUSED, UNUSED, sizeof UNUSED) != 0)
        return 0;
    if (km_frame_check_header(record, KM_HEADER_SIZE, FRAME_MAX) != KM_FRAME_OK)
        return 0;
    memcpy(&header, record, sizeof header);
    return header.op == op;
}

size_t km_witness_index(const uint8_t *image, size_t count, uint32_t segment, uint64_t base, uint64_t origin,
                        uint32_t *positions, uint32_t *damaged)
{
    size_t bad = 0;
    uint32_t before = 0;

    for (size_t first = 0; first < count; first += KM_WITNESS_PER_SECTOR) {
        size_t end = first + KM_WITNESS_PER_SECTOR < count ? first + KM_WITNESS_PER_SECTOR : count;
        int found = 0;
        for (size_t index = first; index < end; index++) {
            const uint8_t *record = image + index * KM_WITNESS_RECORD;
            km_header header;
            uint64_t distance;
            if (!km_witness_holds(record, segment, (uint32_t)index, base + index)) {
                damaged[bad++] = (uint32_t)index;
                continue;
            }
            if (found)
                continue;
            found = 1;
            memcpy(&header, record, sizeof header);
            distance = header.position > origin ? header.position - origin : 0;
            before = distance < UINT32_MAX ? (uint32_t)distance : UINT32_MAX;
        }
        positions[first / KM_WITNESS_PER_SECTOR] = before;
    }
    return bad;
}
