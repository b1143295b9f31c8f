/* A golden image as this host reads it: out of the cache, and what is not there, once, out of the
 * cluster.
 *
 * Nothing here knows Ceph: how to read a range of the image from the cluster is handed in.
 */
#ifndef VK_GOLDEN_H
#define VK_GOLDEN_H

#include <stdbool.h>
#include <stdint.h>

#include "cache.h"
#include "manifest.h"

/* Read from the cluster; 0, or a negative errno. */
typedef int fetch_function(void *source, void *buffer, size_t length, uint64_t offset);

struct golden;

/* Takes over the manifest. `label` is what messages call the image. NULL with errno. */
struct golden *golden_new(struct cache *cache, const char *owner, const char *label,
                          struct manifest *manifest, fetch_function *fetch, void *source);
void golden_free(struct golden *golden);

uint64_t golden_size(const struct golden *golden);

/* Read a range; beyond the image's end are zeros. 0, or a negative errno when neither the cache nor
 * the cluster gave bytes that are those of the manifest: nothing in `buffer` may be used then.
 * Any number of threads may call it. */
int golden_read(struct golden *golden, void *buffer, size_t length, uint64_t offset);

#endif
