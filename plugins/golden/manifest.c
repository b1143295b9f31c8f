#include "manifest.h"

#include <stdlib.h>
#include <string.h>

static const uint8_t magic[8] = {'V', 'K', 'G', 'O', 'L', 'D', '0', '1'};
static const uint8_t zero_chunk[DIGEST_BYTES];

#define LARGEST_CHUNK_BYTES (32u << 20)

static uint64_t little_endian(const uint8_t *bytes, size_t count) {
    uint64_t number = 0;
    while (count--)
        number = number << 8 | bytes[count];
    return number;
}

const char *manifest_parse(struct manifest *manifest, const uint8_t *bytes, size_t length) {
    *manifest = (struct manifest){0};
    if (length < MANIFEST_HEADER_BYTES + DIGEST_BYTES || memcmp(bytes, magic, sizeof magic) != 0)
        return "it does not begin like one";
    uint8_t found[DIGEST_BYTES];
    size_t body = length - DIGEST_BYTES;
    if (!digest(bytes, body, found))
        return "there is no memory to check it";
    if (memcmp(found, bytes + body, DIGEST_BYTES) != 0)
        return "its checksum is wrong";
    uint64_t size = little_endian(bytes + 8, 8);
    uint32_t chunk = (uint32_t)little_endian(bytes + 16, 4);
    uint32_t count = (uint32_t)little_endian(bytes + 20, 4);
    if (chunk == 0 || chunk % BLOCK_BYTES != 0 || chunk > LARGEST_CHUNK_BYTES)
        return "its chunks have an impossible size";
    if (size == 0 || size > (uint64_t)count * chunk || size <= (uint64_t)(count - 1) * chunk)
        return "its chunks do not add up to the image";
    if (body - MANIFEST_HEADER_BYTES != (size_t)count * DIGEST_BYTES)
        return "it is cut short";
    manifest->digests = malloc((size_t)count * DIGEST_BYTES);
    if (!manifest->digests)
        return "there is no memory for it";
    memcpy(manifest->digests, bytes + MANIFEST_HEADER_BYTES, (size_t)count * DIGEST_BYTES);
    manifest->size_bytes = size;
    manifest->chunk_bytes = chunk;
    manifest->chunks = count;
    return NULL;
}

void manifest_free(struct manifest *manifest) {
    free(manifest->digests);
    *manifest = (struct manifest){0};
}

bool manifest_is_zero(const struct manifest *manifest, uint32_t chunk) {
    return memcmp(manifest->digests[chunk], zero_chunk, DIGEST_BYTES) == 0;
}

size_t manifest_chunk_length(const struct manifest *manifest, uint32_t chunk) {
    uint64_t left = manifest->size_bytes - (uint64_t)chunk * manifest->chunk_bytes;
    return left < manifest->chunk_bytes ? (size_t)left : manifest->chunk_bytes;
}
