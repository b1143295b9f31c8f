/* The block server of a host's golden images, as a plugin of nbdkit (nbdkit-plugin(3)).
 *
 * One process serves the clones of one tenant, with that tenant's own key. An export is called
 * POOL/IMAGE. nbdkit does the NBD protocol and the threads; a request goes to disk.c.
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache.h"
#include "cluster.h"
#include "counters.h"
#include "disk.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL
#define LARGEST_REQUEST_BYTES (32u << 20)

/* What the command line says; see `help`. Strings live as long as the process. */
static const char *conf, *user, *name_space, *cache_directory, *state_directory;
static int64_t limit_bytes;

static struct cache cache;
static int open_files = -1;
static bool connected;

static int set_setting(const char *key, const char *value) {
    static const struct {
        const char *key, **setting;
    } texts[] = {{"conf", &conf},
                 {"user", &user},
                 {"namespace", &name_space},
                 {"cache", &cache_directory},
                 {"state", &state_directory}};
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if (!strcmp(key, texts[i].key)) {
            *texts[i].setting = strdup(value);
            return *texts[i].setting ? 0 : -1;
        }
    if (!strcmp(key, "limit")) {
        limit_bytes = nbdkit_parse_size(value);
        return limit_bytes < 0 ? -1 : 0;
    }
    nbdkit_error("%s is no setting; there are: conf, user, namespace, cache, state, limit", key);
    return -1;
}

static int check_settings(void) {
    if (conf && user && name_space && cache_directory && state_directory && limit_bytes > 0)
        return 0;
    nbdkit_error("settings are missing; it is started by `svctl golden serve`");
    return -1;
}

static int in_state(const char *name, char *path, size_t room) {
    int length = snprintf(path, room, "%s/%s", state_directory, name);
    return length > 0 && (size_t)length < room ? 0 : -1;
}

static int start(void) {
    char counts[4096], addresses[4096], opened[4096];
    if (in_state("counters", counts, sizeof counts) != 0 ||
        in_state("addresses", addresses, sizeof addresses) != 0 ||
        in_state("open", opened, sizeof opened) != 0) {
        nbdkit_error("the name of directory %s is too long", state_directory);
        return -1;
    }
    if (counters_open(counts) != 0) {
        nbdkit_error("%s can't be written: %m", counts);
        return -1;
    }
    if (mkdir(opened, 0700) != 0 && errno != EEXIST) {
        nbdkit_error("directory %s can't be made: %m", opened);
        return -1;
    }
    open_files = open(opened, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (open_files < 0) {
        nbdkit_error("directory %s can't be read: %m", opened);
        return -1;
    }
    if (cache_open(&cache, cache_directory, (uint64_t)limit_bytes) != 0) {
        nbdkit_error("directory %s can't be used as a cache: %m", cache_directory);
        return -1;
    }
    connected = cluster_connect(conf, user, addresses) == 0;
    return connected ? 0 : -1;
}

static void stop(void) {
    if (connected)
        cluster_disconnect();
}

static void *open_disk(int read_only) {
    (void)read_only;
    const char *export = nbdkit_export_name();
    const char *slash = export ? strchr(export, '/') : NULL;
    char pool[128];
    if (!slash || slash == export || !slash[1] || strpbrk(slash + 1, "/@") ||
        (size_t)(slash - export) >= sizeof pool) {
        nbdkit_error("export %s: say POOL/IMAGE", export ? export : "");
        return NULL;
    }
    memcpy(pool, export, (size_t)(slash - export));
    pool[slash - export] = '\0';
    int reason = 0;
    struct disk *disk = disk_open(&cache, pool, name_space, slash + 1, open_files, &reason);
    if (!disk) {
        nbdkit_error("image %s of %s can't be opened: %s", export, name_space, strerror(-reason));
        nbdkit_set_error(-reason);
        return NULL;
    }
    COUNT(connections, 1);
    return disk;
}

static void close_disk(void *handle) {
    UNCOUNT(connections, 1);
    disk_close(handle);
}

static int64_t get_size(void *handle) { return (int64_t)disk_size(handle); }

static int block_size(void *handle, uint32_t *least, uint32_t *preferred, uint32_t *most) {
    (void)handle;
    *least = 1;
    *preferred = BLOCK_BYTES;
    *most = LARGEST_REQUEST_BYTES;
    return 0;
}

/* All connections to an image use one handle, and what is answered is written: a flush on any of
 * them covers all. */
static int can_multi_conn(void *handle) {
    (void)handle;
    return 1;
}

static int can_fua(void *handle) {
    (void)handle;
    return NBDKIT_FUA_NATIVE;
}

static int answer(int result, const char *what, uint64_t offset) {
    if (result == 0)
        return 0;
    nbdkit_error("%s at %llu: %s", what, (unsigned long long)offset, strerror(-result));
    nbdkit_set_error(-result);
    return -1;
}

static int read_disk(void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags) {
    (void)flags;
    return answer(disk_read(handle, buffer, count, offset), "read", offset);
}

static int write_disk(void *handle, const void *buffer, uint32_t count, uint64_t offset,
                      uint32_t flags) {
    (void)flags;
    return answer(disk_write(handle, buffer, count, offset), "write", offset);
}

static int zero_disk(void *handle, uint32_t count, uint64_t offset, uint32_t flags) {
    (void)flags;
    return answer(disk_zero(handle, count, offset), "write of zeros", offset);
}

static int trim_disk(void *handle, uint32_t count, uint64_t offset, uint32_t flags) {
    (void)flags;
    return answer(disk_trim(handle, count, offset), "trim", offset);
}

static int flush_disk(void *handle, uint32_t flags) {
    (void)flags;
    return answer(disk_flush(handle), "flush", 0);
}

static struct nbdkit_plugin plugin = {
    .name = "virtkit-golden",
    .version = VK_VERSION,
    .longname = "virtkit's golden images",
    .description = "Serves clones of golden images from a cache of this host.",
    .config = set_setting,
    .config_complete = check_settings,
    .config_help = "conf=FILE       complete ceph.conf with the tenant's key\n"
                   "user=NAME       cephx user, without `client.`\n"
                   "namespace=NAME  the tenant's RBD namespace\n"
                   "cache=DIR       chunks of golden images\n"
                   "limit=SIZE      of all chunks\n"
                   "state=DIR       what is known of this process",
    .after_fork = start,
    .cleanup = stop,
    .open = open_disk,
    .close = close_disk,
    .get_size = get_size,
    .block_size = block_size,
    .can_multi_conn = can_multi_conn,
    .can_fua = can_fua,
    .pread = read_disk,
    .pwrite = write_disk,
    .zero = zero_disk,
    .trim = trim_disk,
    .flush = flush_disk,
    .errno_is_preserved = 1,
};

NBDKIT_REGISTER_PLUGIN(plugin)
