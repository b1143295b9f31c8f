/* A directory of chunks that several processes share: found by content, made once, bounded.
 *
 * A chunk is the file OWNER/SHA256 below the cache's directory. It appears by rename when it is
 * whole and verified, so whoever opens it may be killed at any time, and so may whoever makes it.
 *
 *     OWNER/SHA256         a chunk
 *     OWNER/.SHA256.part   one in the making, under flock(2) by who makes it
 *     ledger               how many bytes all of them have, under flock(2) while it is changed
 *
 * OWNER is the pool and namespace of the golden image: chunks are shared by all images of one
 * owner and not between owners, so that nobody learns from a cache what others keep.
 *
 * Room is booked in the ledger, by making the unfinished file as long as it will be, before a byte
 * is written: the limit holds at any moment, whoever dies. The chunks used longest ago make room;
 * a process that is reading one of them keeps its open file.
 *
 * Nothing here knows Ceph or NBD.
 */
#ifndef VK_CACHE_H
#define VK_CACHE_H

#include <stddef.h>
#include <stdint.h>

#include "digest.h"

struct cache {
    int directory;
    uint64_t limit_bytes;
};

/* Somebody's right and duty to make a chunk: publish it or give it up. */
struct claim {
    int owner;
    int part;
    size_t length;
    char name[DIGEST_TEXT_BYTES];
};

enum claimed { CLAIM_OURS, CLAIM_THERE_NOW, CLAIM_NO_ROOM };

/* Use the directory, made if need be; what killed processes left is removed and the ledger is
 * counted anew. Returns -1 with errno. */
int cache_open(struct cache *cache, const char *directory, uint64_t limit_bytes);
void cache_close(struct cache *cache);

/* The directory of one owner's chunks, a descriptor to be closed; -1 with errno. */
int cache_owner(const struct cache *cache, const char *owner);

/* A chunk's file for reading, or -1 with errno, ENOENT if it is not there. */
int cache_find(int owner, const uint8_t digest[DIGEST_BYTES]);

/* Note that a chunk is in use, so that others make room before it. */
void cache_touch(int chunk);

/* Get the right to make a chunk; waits while another thread or process is making it. */
enum claimed cache_claim(struct cache *cache, int owner, const uint8_t digest[DIGEST_BYTES],
                         size_t length, struct claim *claim);

/* The chunk is there for everybody. -1 with errno: it could not be stored; the claim is over. */
int cache_publish(struct cache *cache, struct claim *claim, const void *content);
void cache_give_up(struct cache *cache, struct claim *claim);

/* Remove a chunk that is not what it is called, if `chunk` is still the file of that name. */
void cache_discard(struct cache *cache, int owner, const uint8_t digest[DIGEST_BYTES], int chunk);

/* Bytes of all chunks, those in the making included, as the ledger has it. */
uint64_t cache_bytes(struct cache *cache);

#endif
