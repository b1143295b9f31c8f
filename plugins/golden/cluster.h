/* The connection to Ceph as the tenant, and the golden images that its clones come from. */
#ifndef VK_CLUSTER_H
#define VK_CLUSTER_H

#include <stdint.h>

#include <rbd/librbd.h>

#include "cache.h"
#include "golden.h"

/* Connect with a complete ceph.conf. Notes the addresses by which OSDs know this client, one a
 * line, in the file `addresses` before anything is opened: who starts the next server fences this
 * one by them. Returns 0 or a negative errno, after saying why. */
int cluster_connect(const char *conf, const char *user, const char *addresses);
void cluster_disconnect(void);

/* A context of a pool in a namespace. */
int cluster_pool(const char *pool, const char *name_space, rados_ioctx_t *found);

/* The golden image that is the parent of an open clone, kept for as long as this process lives;
 * NULL if its parent is none, or can't be used, which is said. */
struct golden *cluster_golden_of(struct cache *cache, rbd_image_t clone);

#endif
