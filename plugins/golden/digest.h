/* What a chunk is known by, and what its blocks are recognised by.
 *
 * A chunk's name is the SHA-256 of its content. That is too slow to be computed for every 4 KiB
 * that a guest reads, so when a chunk has been verified its blocks get a check each, of 64 bits,
 * which lives in this process only: it finds memory that has decayed, and was never meant to
 * withstand anybody.
 */
#ifndef VK_DIGEST_H
#define VK_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define DIGEST_BYTES 32
#define DIGEST_TEXT_BYTES (2 * DIGEST_BYTES + 1)
#define BLOCK_BYTES 4096

/* False if the library has no memory for it. */
bool digest(const void *data, size_t length, uint8_t found[DIGEST_BYTES]);

void digest_text(const uint8_t digest[DIGEST_BYTES], char text[DIGEST_TEXT_BYTES]);

/* Differs for any two blocks of one length that differ in one word, and almost surely for others. */
uint64_t block_check(const uint8_t *block, size_t length);

#endif
