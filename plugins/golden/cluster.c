#include "cluster.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "say.h"

/* storvirt/golden.py names them. */
#define MANIFEST_OBJECT "virtkit_golden.%s.%" PRIu64
#define LARGEST_MANIFEST_BYTES (64u << 20)
#define READ_STEP_BYTES (4u << 20)

/* A golden image with its snapshot open in the cluster. */
struct known_golden {
    struct known_golden *next;
    char *key;
    rados_ioctx_t pool;
    rbd_image_t snapshot;
    struct golden *golden;
};

static rados_t cluster;
static struct known_golden *goldens;
static pthread_mutex_t goldens_lock = PTHREAD_MUTEX_INITIALIZER;

static int note_addresses(const char *path) {
    char *addresses = NULL;
    char draft[4096];
    int result = rados_getaddrs(cluster, &addresses);
    if (result != 0)
        return result;
    int length = snprintf(draft, sizeof draft, "%s.draft", path);
    FILE *file = length > 0 && (size_t)length < sizeof draft ? fopen(draft, "we") : NULL;
    result = file ? 0 : -errno;
    if (file) {
        if (fprintf(file, "%s\n", addresses) < 0)
            result = -EIO;
        if (fclose(file) != 0)
            result = -errno;
    }
    if (result == 0 && rename(draft, path) != 0)
        result = -errno;
    rados_buffer_free(addresses);
    return result;
}

int cluster_connect(const char *conf, const char *user, const char *addresses) {
    int result = rados_create(&cluster, user);
    if (result != 0) {
        say("librados does not start: %s", strerror(-result));
        return result;
    }
    result = rados_conf_read_file(cluster, conf);
    /* A write that is answered is on the OSDs: nothing is held back, so a flush has nothing to do,
     * and a server that is killed takes nothing along. */
    if (result == 0)
        result = rados_conf_set(cluster, "rbd_cache", "false");
    if (result == 0)
        result = rados_connect(cluster);
    if (result == 0)
        result = note_addresses(addresses);
    if (result != 0) {
        say("Ceph can't be reached as client.%s: %s", user, strerror(-result));
        rados_shutdown(cluster);
    }
    return result;
}

void cluster_disconnect(void) {
    while (goldens) {
        struct known_golden *one = goldens;
        goldens = one->next;
        golden_free(one->golden);
        rbd_close(one->snapshot);
        rados_ioctx_destroy(one->pool);
        free(one->key);
        free(one);
    }
    rados_shutdown(cluster);
}

int cluster_pool(const char *pool, const char *name_space, rados_ioctx_t *found) {
    int result = rados_ioctx_create(cluster, pool, found);
    if (result == 0)
        rados_ioctx_set_namespace(*found, name_space);
    return result;
}

static int fetch(void *source, void *buffer, size_t length, uint64_t offset) {
    const struct known_golden *one = source;
    char *target = buffer;
    while (length) {
        ssize_t got = rbd_read2(one->snapshot, offset, length, target,
                                LIBRADOS_OP_FLAG_FADVISE_NOCACHE);
        if (got < 0)
            return (int)got;
        if (got == 0)
            return -EIO;
        target += got;
        offset += (uint64_t)got;
        length -= (size_t)got;
    }
    return 0;
}

static int read_object(rados_ioctx_t pool, const char *name, uint8_t **bytes, size_t *length) {
    uint64_t size = 0;
    time_t changed;
    int result = rados_stat(pool, name, &size, &changed);
    if (result != 0)
        return result;
    if (size > LARGEST_MANIFEST_BYTES)
        return -EFBIG;
    uint8_t *buffer = malloc(size ? size : 1);
    if (!buffer)
        return -ENOMEM;
    for (uint64_t at = 0; at < size;) {
        size_t step = size - at < READ_STEP_BYTES ? (size_t)(size - at) : READ_STEP_BYTES;
        int got = rados_read(pool, name, (char *)buffer + at, step, at);
        if (got <= 0) {
            free(buffer);
            return got ? got : -EIO;
        }
        at += (uint64_t)got;
    }
    *bytes = buffer;
    *length = size;
    return 0;
}

/* Fetch the manifest and open the snapshot. Quiet if the image simply is not golden. */
static int open_golden(struct cache *cache, struct known_golden *one,
                       const rbd_linked_image_spec_t *image, const rbd_snap_spec_t *snapshot) {
    char object[512], label[512], owner[300];
    uint8_t *bytes = NULL;
    size_t length = 0;
    struct manifest manifest;
    snprintf(object, sizeof object, MANIFEST_OBJECT, image->image_id, snapshot->id);
    snprintf(label, sizeof label, "%s/%s/%s@%s", image->pool_name, image->pool_namespace,
             image->image_name, snapshot->name);
    int used = snprintf(owner, sizeof owner, "%" PRId64 "-%s", image->pool_id,
                        image->pool_namespace);
    if (used < 0 || (size_t)used >= sizeof owner || strchr(owner, '/'))
        return -ENAMETOOLONG;
    int result = rados_ioctx_create2(cluster, image->pool_id, &one->pool);
    if (result != 0)
        return result;
    rados_ioctx_set_namespace(one->pool, image->pool_namespace);
    result = read_object(one->pool, object, &bytes, &length);
    if (result == 0) {
        const char *fault = manifest_parse(&manifest, bytes, length);
        if (fault) {
            say("%s: its manifest is unusable: %s. Make the golden image again", label, fault);
            result = -EINVAL;
        }
        free(bytes);
    } else if (result != -ENOENT) {
        say("%s: its manifest can't be read: %s", label, strerror(-result));
    }
    if (result == 0) {
        result = rbd_open_by_id_read_only(one->pool, image->image_id, &one->snapshot,
                                          snapshot->name);
        if (result == 0) {
            one->golden = golden_new(cache, owner, label, &manifest, fetch, one);
            if (!one->golden) {
                result = -errno;
                rbd_close(one->snapshot);
            }
        }
        if (result != 0) {
            say("%s can't be opened: %s", label, strerror(-result));
            manifest_free(&manifest);
        }
    }
    if (result != 0)
        rados_ioctx_destroy(one->pool);
    return result;
}

static struct golden *find_golden(struct cache *cache, const rbd_linked_image_spec_t *image,
                                  const rbd_snap_spec_t *snapshot) {
    char key[512];
    snprintf(key, sizeof key, "%" PRId64 "/%s/%s/%" PRIu64, image->pool_id, image->pool_namespace,
             image->image_id, snapshot->id);
    for (struct known_golden *one = goldens; one; one = one->next)
        if (!strcmp(one->key, key))
            return one->golden;
    struct known_golden *one = calloc(1, sizeof *one);
    if (one)
        one->key = strdup(key);
    if (!one || !one->key || open_golden(cache, one, image, snapshot) != 0) {
        if (one)
            free(one->key);
        free(one);
        return NULL;
    }
    one->next = goldens;
    goldens = one;
    return one->golden;
}

struct golden *cluster_golden_of(struct cache *cache, rbd_image_t clone) {
    rbd_linked_image_spec_t image;
    rbd_snap_spec_t snapshot;
    if (rbd_get_parent(clone, &image, &snapshot) != 0)
        return NULL;
    pthread_mutex_lock(&goldens_lock);
    struct golden *found = find_golden(cache, &image, &snapshot);
    pthread_mutex_unlock(&goldens_lock);
    rbd_linked_image_spec_cleanup(&image);
    rbd_snap_spec_cleanup(&snapshot);
    return found;
}
