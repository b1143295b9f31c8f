#include "cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "counters.h"

#define LEDGER "ledger"
#define PART_SUFFIX ".part"
#define PART_NAME_BYTES (DIGEST_TEXT_BYTES + sizeof("." PART_SUFFIX))
/* Making room for one chunk means looking at all, so room is made for a sixteenth of them. */
#define EVICTION_SHARE 16

/* A chunk that could make room. */
struct candidate {
    struct timespec used;
    uint64_t bytes;
    char owner[256];
    char name[DIGEST_TEXT_BYTES];
};

struct survey {
    uint64_t bytes;
    struct candidate *candidates;
    size_t count, room;
};

static int lock_ledger(const struct cache *cache) {
    int ledger = openat(cache->directory, LEDGER, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (ledger < 0)
        return -1;
    while (flock(ledger, LOCK_EX) != 0)
        if (errno != EINTR) {
            close(ledger);
            return -1;
        }
    return ledger;
}

static uint64_t read_ledger(int ledger) {
    uint64_t bytes = 0;
    return pread(ledger, &bytes, sizeof bytes, 0) == sizeof bytes ? bytes : 0;
}

static int write_ledger(int ledger, uint64_t bytes) {
    return pwrite(ledger, &bytes, sizeof bytes, 0) == sizeof bytes ? 0 : -1;
}

static void part_name(const char *name, char part[PART_NAME_BYTES]) {
    snprintf(part, PART_NAME_BYTES, ".%s" PART_SUFFIX, name);
}

/* Whether `name` in `owner` is the file that is open. */
static bool is_still(int owner, const char *name, int file) {
    struct stat named, opened;
    return fstatat(owner, name, &named, AT_SYMLINK_NOFOLLOW) == 0 && fstat(file, &opened) == 0 &&
           named.st_ino == opened.st_ino && named.st_dev == opened.st_dev;
}

/* Remove an unfinished chunk whose maker has died. Returns whether it is gone. */
static bool remove_abandoned(int owner, const char *name) {
    int part = openat(owner, name, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (part < 0)
        return errno == ENOENT;
    bool abandoned = flock(part, LOCK_EX | LOCK_NB) == 0 && is_still(owner, name, part);
    if (abandoned)
        unlinkat(owner, name, 0);
    close(part);
    return abandoned;
}

static int add_candidate(struct survey *survey, const char *owner, const char *name,
                         const struct stat *facts) {
    if (survey->count == survey->room) {
        size_t room = survey->room ? 2 * survey->room : 256;
        struct candidate *grown = realloc(survey->candidates, room * sizeof *grown);
        if (!grown)
            return -1;
        survey->candidates = grown;
        survey->room = room;
    }
    struct candidate *one = &survey->candidates[survey->count++];
    one->used = facts->st_mtim;
    one->bytes = (uint64_t)facts->st_size;
    snprintf(one->owner, sizeof one->owner, "%s", owner);
    snprintf(one->name, sizeof one->name, "%.*s", DIGEST_TEXT_BYTES - 1, name);
    return 0;
}

static int survey_owner(struct survey *survey, int owner, const char *owner_name) {
    int again = openat(owner, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = again < 0 ? NULL : fdopendir(again);
    if (!listing) {
        if (again >= 0)
            close(again);
        return -1;
    }
    int result = 0;
    const struct dirent *entry;
    while (result == 0 && (entry = readdir(listing))) {
        const char *name = entry->d_name;
        struct stat facts;
        size_t length = strlen(name);
        if (!strcmp(name, ".") || !strcmp(name, ".."))
            continue;
        bool unfinished = name[0] == '.';
        if (unfinished && remove_abandoned(owner, name))
            continue;
        if (fstatat(owner, name, &facts, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(facts.st_mode))
            continue;
        survey->bytes += (uint64_t)facts.st_size;
        if (!unfinished && length == DIGEST_TEXT_BYTES - 1)
            result = add_candidate(survey, owner_name, name, &facts);
    }
    closedir(listing);
    return result;
}

/* Count everything; the ledger must be locked, so nothing is booked meanwhile. */
static int survey_all(const struct cache *cache, struct survey *survey) {
    int again = openat(cache->directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = again < 0 ? NULL : fdopendir(again);
    if (!listing) {
        if (again >= 0)
            close(again);
        return -1;
    }
    int result = 0;
    const struct dirent *entry;
    while (result == 0 && (entry = readdir(listing))) {
        if (entry->d_name[0] == '.')
            continue;
        int owner = openat(cache->directory, entry->d_name,
                           O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (owner < 0)
            continue;
        result = survey_owner(survey, owner, entry->d_name);
        close(owner);
    }
    closedir(listing);
    return result;
}

static int longest_unused_first(const void *left, const void *right) {
    const struct timespec *a = &((const struct candidate *)left)->used;
    const struct timespec *b = &((const struct candidate *)right)->used;
    if (a->tv_sec != b->tv_sec)
        return a->tv_sec < b->tv_sec ? -1 : 1;
    return a->tv_nsec < b->tv_nsec ? -1 : a->tv_nsec > b->tv_nsec;
}

/* Remove chunks until no more than `most` bytes are left, and return how many are. */
static uint64_t evict(const struct cache *cache, struct survey *survey, uint64_t most) {
    if (survey->count)
        qsort(survey->candidates, survey->count, sizeof *survey->candidates,
              longest_unused_first);
    for (size_t i = 0; i < survey->count && survey->bytes > most; i++) {
        const struct candidate *one = &survey->candidates[i];
        int owner = openat(cache->directory, one->owner, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
        if (owner < 0)
            continue;
        if (unlinkat(owner, one->name, 0) == 0) {
            survey->bytes -= one->bytes;
            COUNT(evicted, 1);
        }
        close(owner);
    }
    return survey->bytes;
}

/* Book `length` bytes for an unfinished chunk. Returns -1 if there is no room for it. */
static int book(const struct cache *cache, int part, size_t length) {
    int ledger = lock_ledger(cache);
    if (ledger < 0)
        return -1;
    uint64_t bytes = read_ledger(ledger);
    int result = 0;
    if (bytes + length > cache->limit_bytes) {
        struct survey survey = {0};
        uint64_t spare = cache->limit_bytes / EVICTION_SHARE;
        if (spare < length)
            spare = length;
        result = survey_all(cache, &survey);
        if (result == 0 && cache->limit_bytes >= spare)
            bytes = evict(cache, &survey, cache->limit_bytes - spare);
        free(survey.candidates);
    }
    if (result == 0 && bytes + length > cache->limit_bytes)
        result = -1;
    if (result == 0)
        result = ftruncate(part, (off_t)length);
    if (result == 0)
        bytes += length;
    if (write_ledger(ledger, bytes) != 0)
        result = -1;
    close(ledger);
    return result;
}

static void remove_booked(const struct cache *cache, int owner, const char *name, int file) {
    int ledger = lock_ledger(cache);
    struct stat facts;
    if (is_still(owner, name, file) && fstat(file, &facts) == 0 &&
        unlinkat(owner, name, 0) == 0 && ledger >= 0) {
        uint64_t bytes = read_ledger(ledger), freed = (uint64_t)facts.st_size;
        write_ledger(ledger, bytes > freed ? bytes - freed : 0);
    }
    if (ledger >= 0)
        close(ledger);
}

int cache_open(struct cache *cache, const char *directory, uint64_t limit_bytes) {
    if (mkdir(directory, 0700) != 0 && errno != EEXIST)
        return -1;
    cache->limit_bytes = limit_bytes;
    cache->directory = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (cache->directory < 0)
        return -1;
    int ledger = lock_ledger(cache);
    struct survey survey = {0};
    int result = ledger < 0 ? -1 : survey_all(cache, &survey);
    if (result == 0)
        /* The limit may be lower than that of an earlier run. */
        result = write_ledger(ledger, evict(cache, &survey, limit_bytes));
    free(survey.candidates);
    if (ledger >= 0)
        close(ledger);
    if (result != 0)
        cache_close(cache);
    return result;
}

void cache_close(struct cache *cache) {
    close(cache->directory);
    cache->directory = -1;
}

int cache_owner(const struct cache *cache, const char *owner) {
    if (mkdirat(cache->directory, owner, 0700) != 0 && errno != EEXIST)
        return -1;
    return openat(cache->directory, owner, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

int cache_find(int owner, const uint8_t digest[DIGEST_BYTES]) {
    char name[DIGEST_TEXT_BYTES];
    digest_text(digest, name);
    return openat(owner, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
}

void cache_touch(int chunk) {
    const struct timespec now[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}};
    futimens(chunk, now);
}

enum claimed cache_claim(struct cache *cache, int owner, const uint8_t digest[DIGEST_BYTES],
                         size_t length, struct claim *claim) {
    char part[PART_NAME_BYTES];
    *claim = (struct claim){.owner = owner, .part = -1, .length = length};
    digest_text(digest, claim->name);
    part_name(claim->name, part);
    for (;;) {
        int file = openat(owner, part, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (file < 0)
            return CLAIM_NO_ROOM;
        if (flock(file, LOCK_EX) != 0) {
            bool interrupted = errno == EINTR;
            close(file);
            if (interrupted)
                continue;
            return CLAIM_NO_ROOM;
        }
        if (!is_still(owner, part, file)) {
            /* Whoever we waited for has published it, or given up. */
            close(file);
            if (faccessat(owner, claim->name, F_OK, 0) == 0)
                return CLAIM_THERE_NOW;
            continue;
        }
        claim->part = file;
        if (faccessat(owner, claim->name, F_OK, 0) == 0) {
            remove_booked(cache, owner, part, file);
            close(file);
            return CLAIM_THERE_NOW;
        }
        struct stat facts;
        /* What a killed process left is booked already. */
        bool booked = fstat(file, &facts) == 0 && (size_t)facts.st_size == length;
        if (!booked && book(cache, file, length) != 0) {
            cache_give_up(cache, claim);
            return CLAIM_NO_ROOM;
        }
        return CLAIM_OURS;
    }
}

int cache_publish(struct cache *cache, struct claim *claim, const void *content) {
    const char *bytes = content;
    char part[PART_NAME_BYTES];
    part_name(claim->name, part);
    for (size_t at = 0; at < claim->length;) {
        ssize_t written = pwrite(claim->part, bytes + at, claim->length - at, (off_t)at);
        if (written <= 0) {
            int reason = written < 0 ? errno : ENOSPC;
            if (reason == EINTR)
                continue;
            cache_give_up(cache, claim);
            errno = reason;
            return -1;
        }
        at += (size_t)written;
    }
    /* Who counts under the lock must not meet it under both names, or under none. */
    int ledger = lock_ledger(cache);
    int result = ledger < 0 ? -1 : renameat(claim->owner, part, claim->owner, claim->name);
    int reason = errno;
    if (ledger >= 0)
        close(ledger);
    if (result != 0) {
        cache_give_up(cache, claim);
        errno = reason;
        return -1;
    }
    close(claim->part);
    claim->part = -1;
    return 0;
}

void cache_give_up(struct cache *cache, struct claim *claim) {
    char part[PART_NAME_BYTES];
    part_name(claim->name, part);
    remove_booked(cache, claim->owner, part, claim->part);
    close(claim->part);
    claim->part = -1;
}

void cache_discard(struct cache *cache, int owner, const uint8_t digest[DIGEST_BYTES], int chunk) {
    char name[DIGEST_TEXT_BYTES];
    digest_text(digest, name);
    remove_booked(cache, owner, name, chunk);
}

uint64_t cache_bytes(struct cache *cache) {
    int ledger = lock_ledger(cache);
    uint64_t bytes = ledger < 0 ? 0 : read_ledger(ledger);
    if (ledger >= 0)
        close(ledger);
    return bytes;
}
