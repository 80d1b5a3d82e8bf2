/* Witness files: records of 512 bytes, one for each entry of a segment. The layout is drawn in
 * kimberlite/storage/journal.py; this is the check of many records at once. */
#ifndef KM_WITNESS_H
#define KM_WITNESS_H

#include <stddef.h>
#include <stdint.h>

enum {
    KM_WITNESS_RECORD = 512,
    KM_WITNESS_PER_SECTOR = 8,
};

/* Whether a record is intact and belongs to this place: record `index` of `segment`, of `op`. */
int km_witness_holds(const uint8_t *record, uint32_t segment, uint32_t index, uint64_t op);

/* Check the records 0 .. count-1 of an image. For each sector of 8 records, positions[] gets the event
 * position of its first intact record, less `origin` and at most UINT32_MAX; that of the sector before
 * when it has none (0 at the beginning). damaged[] gets the indexes of the others; returns how many. */
size_t km_witness_index(const uint8_t *image, size_t count, uint32_t segment, uint64_t base, uint64_t origin,
                        uint32_t *positions, uint32_t *damaged);

#endif
