#include "disk.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cluster.h"
#include "counters.h"
#include "golden.h"
#include "say.h"

#define OBJECT_LOCKS 64
/* Whether the lock is still ours is asked this often; asking costs a request to an OSD. */
#define LOCK_CHECK_S 1
/* librbd's calls return lengths as int. */
#define LONGEST_STEP_BYTES (1u << 30)
/* Setting a note in an image's metadata makes librbd get the exclusive lock, if it is free, without
 * taking it from others; asking for it outright would never hand it over again. */
#define LOCK_NOTE "virtkit.golden_host"

struct disk {
    struct disk *next;
    char *key;
    unsigned users;

    /* Held while the image is opened and while its lock is looked at. */
    pthread_mutex_t state;
    bool opened;
    rados_ioctx_t pool;
    rbd_image_t image;
    int open_files;
    char *open_file;

    uint64_t object_bytes;
    struct golden *golden;
    /* Objects below this number may be golden; one bit each says that it is the clone's own. Bits
     * are only ever set while the disk is open. */
    uint64_t tracked;
    uint64_t golden_bytes;
    _Atomic uint8_t *own;
    /* Whether bits that are not set mean anything. */
    _Atomic bool trusted;
    _Atomic int64_t checked_s;
    /* Held by who gives the clone an object that it does not have. */
    pthread_mutex_t objects[OBJECT_LOCKS];
};

static struct disk *disks;
static pthread_mutex_t disks_lock = PTHREAD_MUTEX_INITIALIZER;

/* What a request does to a part of a disk that lies in one object, or in a run of own ones. */
typedef int part_function(struct disk *disk, void *buffer, size_t length, uint64_t offset);

static bool is_own(const struct disk *disk, uint64_t object) {
    return object >= disk->tracked ||
           (atomic_load_explicit(&disk->own[object / 8], memory_order_acquire) >> object % 8 & 1);
}

static void set_own(struct disk *disk, uint64_t object) {
    if (object < disk->tracked)
        atomic_fetch_or(&disk->own[object / 8], (uint8_t)(1u << object % 8));
}

static pthread_mutex_t *lock_of(struct disk *disk, uint64_t object) {
    return &disk->objects[object % OBJECT_LOCKS];
}

/* Opening */

static int note_own(uint64_t offset, size_t length, int exists, void *argument) {
    struct disk *disk = argument;
    if (exists && length)
        for (uint64_t object = offset / disk->object_bytes;
             object <= (offset + length - 1) / disk->object_bytes; object++)
            set_own(disk, object);
    return 0;
}

static bool holds_lock(struct disk *disk) {
    int owner = 0;
    return rbd_is_exclusive_lock_owner(disk->image, &owner) == 0 && owner;
}

static bool is_locked(struct disk *disk) {
    rbd_lock_mode_t mode;
    char *owners[1] = {NULL};
    size_t most = 1;
    int result = rbd_lock_get_owners(disk->image, &mode, owners, &most);
    if (result == 0)
        rbd_lock_get_owners_cleanup(owners, most);
    return result == 0 && most > 0;
}

/* Find out whether the lock is ours, get it if it is free, and if it is new, what the clone has.
 * The state must be locked. */
static void look_at_lock(struct disk *disk) {
    bool held = holds_lock(disk);
    if (atomic_load(&disk->trusted)) {
        if (held)
            return;
        atomic_store(&disk->trusted, false);
    }
    if (!held && !is_locked(disk)) {
        char host[256] = "";
        gethostname(host, sizeof host - 1);
        held = rbd_metadata_set(disk->image, LOCK_NOTE, host) == 0 && holds_lock(disk);
    }
    uint64_t size = 0, overlap = 0;
    if (!held || rbd_get_size(disk->image, &size) != 0 ||
        rbd_get_overlap(disk->image, &overlap) != 0 || overlap < disk->golden_bytes)
        return;
    int result = rbd_diff_iterate2(disk->image, NULL, 0, disk->golden_bytes, 0, 1, note_own, disk);
    if (result == 0)
        atomic_store(&disk->trusted, true);
    else
        say("%s: what it has written is not known (%s); it is read from the cluster", disk->key,
            strerror(-result));
}

static bool is_trusted(struct disk *disk) {
    if (!disk->golden)
        return false;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    int64_t checked = atomic_load_explicit(&disk->checked_s, memory_order_relaxed);
    if (now.tv_sec - checked >= LOCK_CHECK_S && pthread_mutex_trylock(&disk->state) == 0) {
        atomic_store(&disk->checked_s, now.tv_sec);
        look_at_lock(disk);
        pthread_mutex_unlock(&disk->state);
    }
    return atomic_load_explicit(&disk->trusted, memory_order_acquire);
}

/* Prepare to read from the golden image, if the clone is of one and laid out so that objects of
 * the clone are ranges of the disk. */
static int find_golden(struct disk *disk, struct cache *cache) {
    rbd_image_info_t facts;
    uint64_t overlap = 0, unit = 0, count = 0;
    int result = rbd_stat(disk->image, &facts, sizeof facts);
    if (result == 0)
        result = rbd_get_overlap(disk->image, &overlap);
    if (result == 0)
        result = rbd_get_stripe_unit(disk->image, &unit);
    if (result == 0)
        result = rbd_get_stripe_count(disk->image, &count);
    if (result != 0)
        return result;
    disk->object_bytes = facts.obj_size;
    if (overlap > facts.size)
        overlap = facts.size;
    if (overlap == 0 || count != 1 || unit != facts.obj_size)
        return 0;
    struct golden *golden = cluster_golden_of(cache, disk->image);
    if (!golden)
        return 0;
    if (overlap > golden_size(golden))
        overlap = golden_size(golden);
    uint64_t objects = (overlap + facts.obj_size - 1) / facts.obj_size;
    disk->own = calloc((size_t)(objects / 8 + 1), 1);
    if (!disk->own)
        return -ENOMEM;
    disk->golden_bytes = overlap;
    disk->tracked = objects;
    disk->golden = golden;
    look_at_lock(disk);
    return 0;
}

static int open_image(struct disk *disk, struct cache *cache, const char *pool,
                      const char *name_space, const char *name) {
    int result = cluster_pool(pool, name_space, &disk->pool);
    if (result != 0)
        return result;
    /* Before the image: whoever cleans up after this process must find what it had open. */
    int note = openat(disk->open_files, disk->open_file, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (note >= 0)
        close(note);
    result = note < 0 ? -errno : rbd_open(disk->pool, name, &disk->image, NULL);
    if (result == 0) {
        result = find_golden(disk, cache);
        if (result != 0)
            rbd_close(disk->image);
    }
    if (result != 0) {
        if (note >= 0)
            unlinkat(disk->open_files, disk->open_file, 0);
        rados_ioctx_destroy(disk->pool);
    }
    return result;
}

static void free_disk(struct disk *disk) {
    for (size_t i = 0; i < OBJECT_LOCKS; i++)
        pthread_mutex_destroy(&disk->objects[i]);
    pthread_mutex_destroy(&disk->state);
    free(disk->own);
    free(disk->open_file);
    free(disk->key);
    free(disk);
}

static struct disk *new_disk(const char *key, const char *pool, const char *name) {
    struct disk *disk = calloc(1, sizeof *disk);
    if (!disk)
        return NULL;
    pthread_mutex_init(&disk->state, NULL);
    for (size_t i = 0; i < OBJECT_LOCKS; i++)
        pthread_mutex_init(&disk->objects[i], NULL);
    disk->key = strdup(key);
    if (asprintf(&disk->open_file, "%s@%s", pool, name) < 0)
        disk->open_file = NULL;
    if (!disk->key || !disk->open_file) {
        free_disk(disk);
        return NULL;
    }
    return disk;
}

/* The disk of this key with one user more. */
static struct disk *use(const char *key, const char *pool, const char *name) {
    pthread_mutex_lock(&disks_lock);
    struct disk *disk = disks;
    while (disk && strcmp(disk->key, key) != 0)
        disk = disk->next;
    if (!disk && (disk = new_disk(key, pool, name))) {
        disk->next = disks;
        disks = disk;
    }
    if (disk)
        disk->users++;
    pthread_mutex_unlock(&disks_lock);
    return disk;
}

struct disk *disk_open(struct cache *cache, const char *pool, const char *name_space,
                       const char *name, int open_files, int *reason) {
    char key[512];
    snprintf(key, sizeof key, "%s/%s/%s", pool, name_space, name);
    struct disk *disk = use(key, pool, name);
    *reason = -ENOMEM;
    if (!disk)
        return NULL;
    pthread_mutex_lock(&disk->state);
    *reason = 0;
    if (!disk->opened) {
        disk->open_files = open_files;
        *reason = open_image(disk, cache, pool, name_space, name);
        disk->opened = *reason == 0;
        if (disk->opened)
            COUNT(disks, 1);
    }
    pthread_mutex_unlock(&disk->state);
    if (*reason != 0) {
        disk_close(disk);
        return NULL;
    }
    return disk;
}

void disk_close(struct disk *disk) {
    pthread_mutex_lock(&disks_lock);
    bool last = --disk->users == 0;
    if (last) {
        /* Closed before the list is let go, so that who opens it next does not meet this lock. */
        struct disk **link = &disks;
        while (*link != disk)
            link = &(*link)->next;
        *link = disk->next;
        if (disk->opened) {
            rbd_close(disk->image);
            rados_ioctx_destroy(disk->pool);
            unlinkat(disk->open_files, disk->open_file, 0);
            UNCOUNT(disks, 1);
        }
    }
    pthread_mutex_unlock(&disks_lock);
    if (last)
        free_disk(disk);
}

uint64_t disk_size(struct disk *disk) {
    uint64_t size = 0;
    return rbd_get_size(disk->image, &size) == 0 ? size : 0;
}

/* Requests */

/* Put `golden` to each object that the clone does not have, and `own` to each run of others. */
static int for_each_part(struct disk *disk, char *buffer, size_t length, uint64_t offset,
                         part_function *golden, part_function *own) {
    bool trusted = is_trusted(disk);
    while (length) {
        uint64_t object = offset / disk->object_bytes;
        uint64_t left = (object + 1) * disk->object_bytes - offset;
        size_t part = left < length ? (size_t)left : length;
        bool is_golden = trusted && !is_own(disk, object);
        while (!is_golden && part < length && part < LONGEST_STEP_BYTES) {
            if (trusted && !is_own(disk, ++object))
                break;
            part += length - part < disk->object_bytes ? length - part
                                                       : (size_t)disk->object_bytes;
        }
        int result = (is_golden ? golden : own)(disk, buffer, part, offset);
        if (result != 0)
            return result;
        buffer = buffer ? buffer + part : NULL;
        offset += part;
        length -= part;
    }
    return 0;
}

static int read_own(struct disk *disk, void *buffer, size_t length, uint64_t offset) {
    ssize_t got = rbd_read(disk->image, offset, length, buffer);
    if (got < 0)
        return (int)got;
    COUNT(passed_bytes, length);
    return (size_t)got == length ? 0 : -EIO;
}

static int read_golden(struct disk *disk, void *buffer, size_t length, uint64_t offset) {
    char *target = buffer;
    /* An object that lies across the end of what the clone shares. */
    if (offset + length > disk->golden_bytes) {
        size_t there =
            offset < disk->golden_bytes ? (size_t)(disk->golden_bytes - offset) : 0;
        memset(target + there, 0, length - there);
        length = there;
    }
    if (golden_read(disk->golden, target, length, offset) == 0) {
        COUNT(golden_bytes, length);
        return 0;
    }
    ssize_t got = rbd_read(disk->image, offset, length, target);
    if (got < 0)
        return (int)got;
    COUNT(fallen_bytes, length);
    return (size_t)got == length ? 0 : -EIO;
}

int disk_read(struct disk *disk, void *buffer, size_t length, uint64_t offset) {
    COUNT(reads, 1);
    COUNT(read_bytes, length);
    return for_each_part(disk, buffer, length, offset, read_golden, read_own);
}

static int as_result(ssize_t done) { return done < 0 ? (int)done : 0; }

static int write_image(struct disk *disk, const void *buffer, size_t length, uint64_t offset) {
    return as_result(buffer ? rbd_write(disk->image, offset, length, buffer)
                            : rbd_write_zeroes(disk->image, offset, length, 0, 0));
}

/* While what the clone has is not known, nobody may be making one of these objects whole, or begin
 * to. */
static void make_own(struct disk *disk, size_t length, uint64_t offset) {
    uint64_t last = (offset + length - 1) / disk->object_bytes;
    for (uint64_t object = offset / disk->object_bytes; object <= last && object < disk->tracked;
         object++)
        if (!is_own(disk, object)) {
            pthread_mutex_lock(lock_of(disk, object));
            set_own(disk, object);
            pthread_mutex_unlock(lock_of(disk, object));
        }
}

static int write_own(struct disk *disk, void *buffer, size_t length, uint64_t offset) {
    make_own(disk, length, offset);
    return write_image(disk, buffer, length, offset);
}

/* Give the clone an object made of golden bytes and of `length` written ones, zeros if `buffer` is
 * NULL. */
static int compose(struct disk *disk, uint64_t object, const void *buffer, size_t length,
                   uint64_t offset) {
    uint64_t start = object * disk->object_bytes, size = disk_size(disk);
    if (start >= size || offset + length > size)
        return -EIO;
    size_t whole = size - start < disk->object_bytes ? (size_t)(size - start)
                                                     : (size_t)disk->object_bytes;
    char *content = length == whole ? NULL : malloc(whole);
    int result = 0;
    if (length != whole) {
        if (!content)
            return -ENOMEM;
        size_t before = (size_t)(offset - start), after = whole - before - length;
        result = read_golden(disk, content, before, start);
        if (result == 0)
            result = read_golden(disk, content + before + length, after, offset + length);
        if (result == 0) {
            if (buffer)
                memcpy(content + before, buffer, length);
            else
                memset(content + before, 0, length);
            COUNT(composed, 1);
        }
    }
    if (result == 0)
        result = write_image(disk, content ? content : buffer, whole, start);
    free(content);
    return result;
}

static int write_golden(struct disk *disk, void *buffer, size_t length, uint64_t offset) {
    uint64_t object = offset / disk->object_bytes;
    pthread_mutex_lock(lock_of(disk, object));
    int result;
    /* A whole object of golden bytes would undo what another host has written since. */
    if (is_own(disk, object) || !holds_lock(disk)) {
        set_own(disk, object);
        pthread_mutex_unlock(lock_of(disk, object));
        return write_image(disk, buffer, length, offset);
    }
    result = compose(disk, object, buffer, length, offset);
    /* Also if it failed: what the OSDs did is not known then. Only now, so that others read the
     * golden bytes until the object is there, and not through librbd from the cluster. */
    set_own(disk, object);
    pthread_mutex_unlock(lock_of(disk, object));
    return result;
}

int disk_write(struct disk *disk, const void *buffer, size_t length, uint64_t offset) {
    COUNT(written_bytes, length);
    /* Written, not written to: the parts take what they read into as well. */
    return for_each_part(disk, (char *)(uintptr_t)buffer, length, offset, write_golden, write_own);
}

int disk_zero(struct disk *disk, size_t length, uint64_t offset) {
    return for_each_part(disk, NULL, length, offset, write_golden, write_own);
}

static int trim_own(struct disk *disk, void *buffer, size_t length, uint64_t offset) {
    (void)buffer;
    make_own(disk, length, offset);
    return as_result(rbd_discard(disk->image, offset, length));
}

/* A part of a golden object is left as it is: to hide it, the whole would have to be written. */
static int trim_golden(struct disk *disk, void *buffer, size_t length, uint64_t offset) {
    return length == disk->object_bytes ? write_golden(disk, buffer, length, offset) : 0;
}

int disk_trim(struct disk *disk, size_t length, uint64_t offset) {
    return for_each_part(disk, NULL, length, offset, trim_golden, trim_own);
}

int disk_flush(struct disk *disk) { return rbd_flush(disk->image); }
