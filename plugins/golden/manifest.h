/* The list of a golden image's chunks, as `svctl golden create` writes it into the cluster.
 *
 *     offset  bytes
 *     0       8       "VKGOLD01"
 *     8       8       size of the image in bytes
 *     16      4       size of a chunk in bytes, a multiple of 4096
 *     20      4       number of chunks
 *     24      32 each the SHA-256 of each chunk; all zeros for one that holds only zeros
 *     ...     32      the SHA-256 of all before
 *
 * Numbers are little-endian. The last chunk is as long as what is left of the image.
 * storvirt/golden.py writes it.
 */
#ifndef VK_MANIFEST_H
#define VK_MANIFEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "digest.h"

#define MANIFEST_HEADER_BYTES 24

struct manifest {
    uint64_t size_bytes;
    uint32_t chunk_bytes;
    uint32_t chunks;
    uint8_t (*digests)[DIGEST_BYTES];
};

/* Take a manifest apart. NULL, or why these bytes are none. */
const char *manifest_parse(struct manifest *manifest, const uint8_t *bytes, size_t length);
void manifest_free(struct manifest *manifest);

bool manifest_is_zero(const struct manifest *manifest, uint32_t chunk);
size_t manifest_chunk_length(const struct manifest *manifest, uint32_t chunk);

#endif
