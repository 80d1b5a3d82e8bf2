/* Frames: the fixed header of every message and journal entry.
 *
 * Python-free. Works on (pointer, length), can fail, never reads past the length. All integers
 * are little-endian; the build refuses other machines. A change of the layout is a change of
 * KM_FORMAT_VERSION: tests/fast/test_framing.py holds the same table, written once more.
 */
#ifndef KM_FRAME_H
#define KM_FRAME_H

#include <stddef.h>
#include <stdint.h>

#define KM_HEADER_SIZE 256
#define KM_FORMAT_VERSION 1

/* Offsets of the fields; sizes are in the struct below. */
typedef struct __attribute__((packed)) {
    uint8_t checksum[16];
    uint8_t checksum_body[16];
    uint8_t cluster[16];
    uint8_t magic[4];
    uint16_t version;
    uint8_t command;
    uint8_t replica;
    uint32_t size;
    uint32_t release;
    uint32_t epoch;
    uint8_t operation;
    uint8_t flags;
    uint16_t reason;
    uint64_t view;
    uint64_t op;
    uint64_t commit;
    uint8_t parent[16];
    uint8_t client[16];
    uint64_t session;
    uint64_t request;
    uint64_t timestamp;
    uint64_t position;
    uint32_t count;
    uint32_t latency_us;
    uint8_t context[16];
    uint64_t log_view;
    uint64_t checkpoint_op;
    uint64_t nonce;
    uint8_t trace[25];    /* of tracing: version, trace id, parent id, flags */
    uint64_t principal;   /* who asks, of authenticated clients */
    uint64_t birth_tag;   /* of the birth of the cluster: two births of one id differ in it */
    uint8_t reserved[7];
} km_header;

_Static_assert(sizeof(km_header) == KM_HEADER_SIZE, "the header is 256 bytes without padding");

/* Outcomes; the positive ones are the numbers of kimberlite.types.FrameReason. */
enum {
    KM_FRAME_OK = 0,
    KM_FRAME_BAD_MAGIC = 1,
    KM_FRAME_BAD_VERSION = 2,
    KM_FRAME_BAD_HEADER_CHECKSUM = 3,
    KM_FRAME_BAD_BODY_CHECKSUM = 4,
    KM_FRAME_BAD_SIZE = 5,
    KM_FRAME_BAD_RESERVED = 6,
    KM_FRAME_BAD_COMMAND = 7,
    KM_FRAME_WRONG_CLUSTER = 8,
    KM_FRAME_TRUNCATED = 9,
};

/* Fill magic, version, size, checksum_body (unless given) and checksum of a header whose other
 * fields are set. body_checksum may be NULL: then the body is hashed. */
void km_frame_seal(km_header *header, const void *body, size_t body_length, const uint8_t *body_checksum);

/* Check a header: checksum first, then everything that it protects. A command that this release does not know is no
 * fault of a frame: who gets it passes over it. 0 is no command. trace, principal and birth_tag may hold anything: a
 * later release gives them a meaning. */
int km_frame_check_header(const uint8_t *data, size_t length, uint32_t frame_max);

/* Check the body that belongs to a checked header. */
int km_frame_check_body(const uint8_t *header, const uint8_t *body, size_t length);

/* One frame at the start of data: KM_FRAME_OK and *size, or a reason. KM_FRAME_TRUNCATED means
 * that more bytes are needed: *size is then the frame's size, 0 while the header is incomplete.
 * cluster may be NULL. */
int km_frame_next(const uint8_t *data, size_t length, uint32_t frame_max, const uint8_t *cluster, size_t *size);

#endif
