#include "digest.h"

#include <stdio.h>
#include <string.h>

#include <openssl/evp.h>

/* Odd, so that multiplying by it loses nothing; its bits are those of the golden ratio. */
#define MULTIPLIER 0x9e3779b97f4a7c15u
#define LANES 4

bool digest(const void *data, size_t length, uint8_t found[DIGEST_BYTES]) {
    return EVP_Digest(data, length, found, NULL, EVP_sha256(), NULL) == 1;
}

void digest_text(const uint8_t digest[DIGEST_BYTES], char text[DIGEST_TEXT_BYTES]) {
    for (size_t i = 0; i < DIGEST_BYTES; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
}

static uint64_t stir(uint64_t state, uint64_t word) {
    state = (state ^ word) * MULTIPLIER;
    return state ^ state >> 29;
}

/* Four lanes, because a processor multiplies four times while one product is under way. */
uint64_t block_check(const uint8_t *block, size_t length) {
    uint64_t lanes[LANES] = {1, 2, 3, 4};
    size_t at = 0;

    for (; at + sizeof lanes <= length; at += sizeof lanes) {
        uint64_t words[LANES];
        memcpy(words, block + at, sizeof words);
        for (size_t lane = 0; lane < LANES; lane++)
            lanes[lane] = stir(lanes[lane], words[lane]);
    }
    for (; at < length; at++)
        lanes[0] = stir(lanes[0], block[at]);
    uint64_t check = length;
    for (size_t lane = 0; lane < LANES; lane++)
        check = stir(check, lanes[lane]);
    return check;
}
