/* Threads of several processes read a golden image through one small cache, while processes are
 * killed, chunks are damaged and the limit is watched. No Ceph: the cluster is a function.
 *
 * usage: storm DIRECTORY SECONDS
 *
 * Exit status 0 if every byte that was read was right and the limit held; what was wrong is said.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../counters.h"
#include "../golden.h"

#define CHUNK_BYTES (16u << 10)
#define CHUNKS 40u
#define IMAGE_BYTES ((CHUNKS - 1) * CHUNK_BYTES + 5000)
#define LIMIT_BYTES (12u * CHUNK_BYTES)
#define PROCESSES 3
#define THREADS 4

static uint8_t image[IMAGE_BYTES];
static uint8_t encoded[MANIFEST_HEADER_BYTES + (CHUNKS + 1) * DIGEST_BYTES];

static void put(uint8_t *at, uint64_t number, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        at[i] = (uint8_t)(number >> 8 * i);
}

static void make_image(void) {
    unsigned seed = 7;
    for (size_t i = 0; i < IMAGE_BYTES; i++)
        image[i] = (uint8_t)(rand_r(&seed) >> 7);
    /* A hole, and two chunks that are the same. */
    memset(image + 3 * CHUNK_BYTES, 0, CHUNK_BYTES);
    memcpy(image + 5 * CHUNK_BYTES, image + 4 * CHUNK_BYTES, CHUNK_BYTES);
    memcpy(encoded, "VKGOLD01", 8);
    put(encoded + 8, IMAGE_BYTES, 8);
    put(encoded + 16, CHUNK_BYTES, 4);
    put(encoded + 20, CHUNKS, 4);
    for (size_t i = 0; i < CHUNKS; i++) {
        size_t at = i * CHUNK_BYTES;
        size_t length = IMAGE_BYTES - at < CHUNK_BYTES ? IMAGE_BYTES - at : CHUNK_BYTES;
        if (i != 3)
            digest(image + at, length, encoded + MANIFEST_HEADER_BYTES + i * DIGEST_BYTES);
    }
    size_t body = sizeof encoded - DIGEST_BYTES;
    digest(encoded, body, encoded + body);
}

/* The cluster is slow, sometimes out of order, and once in a while has something else. */
static int fetch(void *source, void *buffer, size_t length, uint64_t offset) {
    unsigned *seed = source;
    (void)seed;
    static _Atomic unsigned calls;
    unsigned call = atomic_fetch_add(&calls, 1);
    if (call % 17 == 5)
        return -EIO;
    usleep(200);
    memcpy(buffer, image + offset, length);
    return 0;
}

static void *read_for_ever(void *argument) {
    struct golden *golden = argument;
    unsigned seed = (unsigned)getpid() ^ (unsigned)(uintptr_t)&seed;
    uint8_t *buffer = malloc(3 * CHUNK_BYTES);
    for (;;) {
        size_t length = 1 + (size_t)rand_r(&seed) % (2 * CHUNK_BYTES);
        uint64_t offset = (uint64_t)rand_r(&seed) % (IMAGE_BYTES + 1000);
        int result = golden_read(golden, buffer, length, offset);
        if (result == -EIO)
            continue;
        if (result != 0) {
            fprintf(stderr, "read failed: %s\n", strerror(-result));
            _exit(1);
        }
        for (size_t i = 0; i < length; i++) {
            uint8_t expected = offset + i < IMAGE_BYTES ? image[offset + i] : 0;
            if (buffer[i] != expected) {
                fprintf(stderr, "wrong byte at %llu\n", (unsigned long long)(offset + i));
                _exit(1);
            }
        }
    }
    return NULL;
}

static void serve(const char *directory) {
    struct cache cache;
    struct manifest manifest;
    const char *fault = manifest_parse(&manifest, encoded, sizeof encoded);
    if (fault || cache_open(&cache, directory, LIMIT_BYTES) != 0) {
        fprintf(stderr, "no start: %s\n", fault ? fault : strerror(errno));
        _exit(1);
    }
    struct golden *golden = golden_new(&cache, "1-red", "storm", &manifest, fetch, NULL);
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, read_for_ever, golden);
    pthread_join(threads[0], NULL);
    _exit(1);
}

static pid_t start(const char *directory) {
    pid_t child = fork();
    if (child == 0)
        serve(directory);
    return child;
}

/* Bytes of all files, and damage to one of them if that is asked for. */
static uint64_t look(const char *directory, bool damage) {
    char path[4096];
    uint64_t bytes = 0;
    /* While it is locked, nothing comes, goes or is renamed. */
    snprintf(path, sizeof path, "%s/ledger", directory);
    int ledger = open(path, O_RDWR);
    if (ledger < 0 || flock(ledger, LOCK_EX) != 0)
        return 0;
    snprintf(path, sizeof path, "%s/1-red", directory);
    DIR *listing = opendir(path);
    const struct dirent *entry;
    while (listing && (entry = readdir(listing))) {
        struct stat facts;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..") ||
            fstatat(dirfd(listing), entry->d_name, &facts, 0) != 0)
            continue;
        bytes += (uint64_t)facts.st_size;
        if (damage && entry->d_name[0] != '.') {
            int file = openat(dirfd(listing), entry->d_name, O_RDWR);
            uint8_t byte = 0;
            if (file >= 0 && pread(file, &byte, 1, 777) == 1) {
                byte ^= 4;
                if (pwrite(file, &byte, 1, 777) != 1)
                    fprintf(stderr, "not damaged\n");
            }
            if (file >= 0)
                close(file);
            damage = false;
        }
    }
    if (listing)
        closedir(listing);
    close(ledger);
    return bytes;
}

int main(int count, char **arguments) {
    if (count != 3)
        return 2;
    make_image();
    pid_t children[PROCESSES];
    for (int i = 0; i < PROCESSES; i++)
        children[i] = start(arguments[1]);
    double seconds = atof(arguments[2]);
    struct timespec began, now;
    clock_gettime(CLOCK_MONOTONIC, &began);
    int failed = 0, deaths = 0;
    uint64_t most = 0;
    for (unsigned round = 0; !failed; round++) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        if ((double)(now.tv_sec - began.tv_sec) > seconds)
            break;
        usleep(2000);
        uint64_t bytes = look(arguments[1], round % 7 == 0);
        most = bytes > most ? bytes : most;
        if (bytes > LIMIT_BYTES) {
            fprintf(stderr, "%llu bytes in the cache\n", (unsigned long long)bytes);
            failed = 1;
        }
        if (round % 11 == 3) {
            int which = (int)(round / 11 % PROCESSES), status;
            kill(children[which], SIGKILL);
            waitpid(children[which], &status, 0);
            if (WIFEXITED(status))
                failed = 1;
            children[which] = start(arguments[1]);
            deaths++;
        }
    }
    for (int i = 0; i < PROCESSES; i++) {
        int status;
        kill(children[i], SIGKILL);
        waitpid(children[i], &status, 0);
        if (WIFEXITED(status))
            failed = 1;
    }
    printf("%d deaths, at most %llu of %u bytes\n", deaths, (unsigned long long)most, LIMIT_BYTES);
    return failed;
}
