#include "golden.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "counters.h"
#include "say.h"

/* A chunk in use is noted as such at most this often. */
#define TOUCH_S 10
/* A chunk may be evicted between being made and being opened, but not each time. */
#define ATTEMPTS 8

/* What this process knows of a chunk that it has verified. */
struct known {
    /* The checks of its blocks, or NULL. Set once. */
    _Atomic(uint64_t *) checks;
    _Atomic int64_t touched_s;
    /* The cluster has something else: not to be read again and again. */
    _Atomic bool mismatched;
};

struct golden {
    struct cache *cache;
    struct manifest manifest;
    struct known *known;
    fetch_function *fetch;
    void *source;
    char *label;
    int owner;
};

struct golden *golden_new(struct cache *cache, const char *owner, const char *label,
                          struct manifest *manifest, fetch_function *fetch, void *source) {
    struct golden *golden = calloc(1, sizeof *golden);
    if (!golden)
        return NULL;
    *golden = (struct golden){.cache = cache, .fetch = fetch, .source = source, .owner = -1};
    golden->known = calloc(manifest->chunks, sizeof *golden->known);
    golden->label = strdup(label);
    if (golden->known && golden->label)
        golden->owner = cache_owner(cache, owner);
    if (golden->owner < 0) {
        golden_free(golden);
        return NULL;
    }
    golden->manifest = *manifest;
    *manifest = (struct manifest){0};
    return golden;
}

void golden_free(struct golden *golden) {
    for (uint32_t i = 0; golden->known && i < golden->manifest.chunks; i++)
        free(atomic_load(&golden->known[i].checks));
    free(golden->known);
    free(golden->label);
    if (golden->owner >= 0)
        close(golden->owner);
    manifest_free(&golden->manifest);
    free(golden);
}

uint64_t golden_size(const struct golden *golden) { return golden->manifest.size_bytes; }

static int read_file(int file, uint8_t *buffer, size_t length, size_t offset) {
    while (length) {
        ssize_t got = pread(file, buffer, length, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return -1;
        buffer += got;
        offset += (size_t)got;
        length -= (size_t)got;
    }
    return 0;
}

static bool is_chunk(const struct golden *golden, uint32_t chunk, const uint8_t *content) {
    uint8_t found[DIGEST_BYTES];
    return digest(content, manifest_chunk_length(&golden->manifest, chunk), found) &&
           memcmp(found, golden->manifest.digests[chunk], DIGEST_BYTES) == 0;
}

static size_t block_length(size_t chunk_length, size_t block) {
    size_t left = chunk_length - block * BLOCK_BYTES;
    return left < BLOCK_BYTES ? left : BLOCK_BYTES;
}

/* Remember the checks of a chunk's blocks, `content` being verified. */
static const uint64_t *remember(struct golden *golden, uint32_t chunk, const uint8_t *content) {
    struct known *known = &golden->known[chunk];
    uint64_t *before = atomic_load_explicit(&known->checks, memory_order_acquire);
    if (before)
        return before;
    size_t length = manifest_chunk_length(&golden->manifest, chunk);
    size_t blocks = (length + BLOCK_BYTES - 1) / BLOCK_BYTES;
    uint64_t *checks = malloc(blocks * sizeof *checks);
    if (!checks)
        return NULL;
    for (size_t i = 0; i < blocks; i++)
        checks[i] = block_check(content + i * BLOCK_BYTES, block_length(length, i));
    if (atomic_compare_exchange_strong(&known->checks, &before, checks))
        return checks;
    free(checks);
    return before;
}

/* Read a range of a chunk's file that must be as the checks say. Returns whether it is. */
static bool read_checked(const uint64_t *checks, size_t chunk_length, int file, uint8_t *buffer,
                         size_t length, size_t offset) {
    uint8_t block[BLOCK_BYTES];
    while (length) {
        size_t number = offset / BLOCK_BYTES, within = offset % BLOCK_BYTES;
        size_t whole = block_length(chunk_length, number);
        size_t wanted = whole - within < length ? whole - within : length;
        uint8_t *target = wanted == whole ? buffer : block;
        if (read_file(file, target, whole, number * BLOCK_BYTES) != 0 ||
            block_check(target, whole) != checks[number])
            return false;
        if (target == block)
            memcpy(buffer, block + within, wanted);
        buffer += wanted;
        offset += wanted;
        length -= wanted;
    }
    return true;
}

static void touch(struct known *known, int file) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    int64_t before = atomic_load_explicit(&known->touched_s, memory_order_relaxed);
    if (now.tv_sec - before < TOUCH_S && before != 0)
        return;
    if (atomic_compare_exchange_strong(&known->touched_s, &before, now.tv_sec))
        cache_touch(file);
}

/* Serve from an open chunk file. Returns false, and removes the file, if it is not the chunk. */
static bool serve(struct golden *golden, uint32_t chunk, int file, uint8_t *buffer, size_t length,
                  size_t offset) {
    struct known *known = &golden->known[chunk];
    size_t whole = manifest_chunk_length(&golden->manifest, chunk);
    const uint64_t *checks = atomic_load_explicit(&known->checks, memory_order_acquire);
    bool good = false;
    if (checks) {
        good = read_checked(checks, whole, file, buffer, length, offset);
    } else {
        uint8_t *content = malloc(whole);
        if (!content)
            return false;
        good = read_file(file, content, whole, 0) == 0 && is_chunk(golden, chunk, content);
        if (good) {
            remember(golden, chunk, content);
            memcpy(buffer, content + offset, length);
        }
        free(content);
    }
    if (good) {
        touch(known, file);
        return true;
    }
    say("%s: chunk %u in the cache is damaged. It is removed and read from the cluster again; if "
        "this is not the only one, look at this host's memory and disk",
        golden->label, chunk);
    COUNT(corrupt, 1);
    cache_discard(golden->cache, golden->owner, golden->manifest.digests[chunk], file);
    return false;
}

/* Read a chunk from the cluster and verify it. */
static int fetch(struct golden *golden, uint32_t chunk, uint8_t *content) {
    size_t length = manifest_chunk_length(&golden->manifest, chunk);
    uint64_t offset = (uint64_t)chunk * golden->manifest.chunk_bytes;
    int result = golden->fetch(golden->source, content, length, offset);
    if (result != 0)
        return result;
    COUNT(fetched_bytes, length);
    if (is_chunk(golden, chunk, content))
        return 0;
    say("%s: chunk %u in the cluster is not what the manifest says; it is not used. Make the "
        "golden image again, and find out who wrote to it",
        golden->label, chunk);
    COUNT(mismatched, 1);
    atomic_store(&golden->known[chunk].mismatched, true);
    return -EILSEQ;
}

/* Read a range of one chunk that is no hole. */
static int read_chunk(struct golden *golden, uint32_t chunk, uint8_t *buffer, size_t length,
                      size_t offset) {
    const uint8_t *name = golden->manifest.digests[chunk];
    size_t whole = manifest_chunk_length(&golden->manifest, chunk);
    enum claimed claimed = CLAIM_THERE_NOW;
    struct claim claim;
    if (atomic_load_explicit(&golden->known[chunk].mismatched, memory_order_relaxed))
        return -EILSEQ;
    for (int attempt = 0; attempt < ATTEMPTS && claimed == CLAIM_THERE_NOW; attempt++) {
        int file = cache_find(golden->owner, name);
        if (file >= 0) {
            bool served = serve(golden, chunk, file, buffer, length, offset);
            close(file);
            if (served) {
                COUNT(hits, 1);
                return 0;
            }
        }
        claimed = cache_claim(golden->cache, golden->owner, name, whole, &claim);
    }
    COUNT(misses, 1);
    uint8_t *content = malloc(whole);
    int result = content ? fetch(golden, chunk, content) : -ENOMEM;
    if (result != 0) {
        if (claimed == CLAIM_OURS)
            cache_give_up(golden->cache, &claim);
    } else {
        remember(golden, chunk, content);
        if (claimed != CLAIM_OURS || cache_publish(golden->cache, &claim, content) != 0)
            COUNT(unpublished, 1);
        memcpy(buffer, content + offset, length);
    }
    free(content);
    return result;
}

int golden_read(struct golden *golden, void *buffer, size_t length, uint64_t offset) {
    const struct manifest *manifest = &golden->manifest;
    uint8_t *target = buffer;
    if (offset >= manifest->size_bytes || length > manifest->size_bytes - offset) {
        size_t there =
            offset < manifest->size_bytes ? (size_t)(manifest->size_bytes - offset) : 0;
        memset(target + there, 0, length - there);
        length = there;
    }
    while (length) {
        uint32_t chunk = (uint32_t)(offset / manifest->chunk_bytes);
        size_t within = (size_t)(offset % manifest->chunk_bytes);
        size_t wanted = manifest->chunk_bytes - within < length ? manifest->chunk_bytes - within
                                                                : length;
        if (manifest_is_zero(manifest, chunk)) {
            memset(target, 0, wanted);
        } else {
            int result = read_chunk(golden, chunk, target, wanted, within);
            if (result != 0)
                return result;
        }
        target += wanted;
        offset += wanted;
        length -= wanted;
    }
    return 0;
}
