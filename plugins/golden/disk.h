/* A clone that guests of this host use: which parts of it are its own, and which are golden.
 *
 * An object that the clone does not have is read from the golden image, through the cache. What it
 * has is read and written in the cluster. Its first write makes an object whole, of golden bytes
 * and written ones, in one request; librbd would read the parent's object from the cluster for it.
 *
 * That is right only as long as nobody else writes to the clone, so it is done only while this
 * process holds the image's exclusive lock, and what the clone has is asked after the lock was
 * got. Without it (another host has the disk open, during a migration for instance) everything
 * goes through librbd.
 */
#ifndef VK_DISK_H
#define VK_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cache.h"

struct disk;

/* The image of this name in a pool of the tenant; connections to one image share one. NULL with
 * a negative errno in `*reason`. `open_files` is a directory that has a file for each open disk. */
struct disk *disk_open(struct cache *cache, const char *pool, const char *name_space,
                       const char *name, int open_files, int *reason);
void disk_close(struct disk *disk);

uint64_t disk_size(struct disk *disk);

/* All return 0 or a negative errno. What returned 0 is on the OSDs. */
int disk_read(struct disk *disk, void *buffer, size_t length, uint64_t offset);
int disk_write(struct disk *disk, const void *buffer, size_t length, uint64_t offset);
int disk_zero(struct disk *disk, size_t length, uint64_t offset);
/* May leave data where it is. */
int disk_trim(struct disk *disk, size_t length, uint64_t offset);
int disk_flush(struct disk *disk);

#endif
