/* What this server has done, in a file that others may read at any time.
 *
 * `svctl golden status` reads it (storvirt/backends/golden_server.py has the same list in the same
 * order); it stays behind when the server is killed, and begins anew with the next one.
 */
#ifndef VK_COUNTERS_H
#define VK_COUNTERS_H

#include <stdatomic.h>
#include <stdint.h>

#define COUNTERS_MAGIC "VKGSTAT1"

struct counters {
    char magic[8];
    _Atomic uint64_t process;
    _Atomic uint64_t connections;     /* now */
    _Atomic uint64_t disks;           /* open now */
    _Atomic uint64_t reads;           /* requests of guests */
    _Atomic uint64_t read_bytes;      /* in them */
    _Atomic uint64_t golden_bytes;    /* of them out of golden images, holes included */
    _Atomic uint64_t hits;            /* looks into a chunk that was there, */
    _Atomic uint64_t misses;          /* and that was not */
    _Atomic uint64_t fetched_bytes;   /* read from the cluster for chunks */
    _Atomic uint64_t passed_bytes;    /* read from the cluster because they are a clone's own */
    _Atomic uint64_t fallen_bytes;    /* golden, but read through the clone: the cache had no way */
    _Atomic uint64_t corrupt;         /* chunks in the cache that were not what they are called */
    _Atomic uint64_t mismatched;      /* chunks in the cluster that are not as in the manifest */
    _Atomic uint64_t evicted;         /* chunks that made room */
    _Atomic uint64_t unpublished;     /* chunks read that the cache could not take */
    _Atomic uint64_t written_bytes;   /* requests of guests */
    _Atomic uint64_t composed;        /* objects made whole of golden and written bytes */
};

extern struct counters *counters;

/* Map the file, made anew. Returns -1 with errno. Until then, counts go nowhere. */
int counters_open(const char *path);

#define COUNT(what, amount) \
    ((void)atomic_fetch_add_explicit(&counters->what, (uint64_t)(amount), memory_order_relaxed))
#define UNCOUNT(what, amount) \
    ((void)atomic_fetch_sub_explicit(&counters->what, (uint64_t)(amount), memory_order_relaxed))

#endif
