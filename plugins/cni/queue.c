#include "queue.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "config.h"

/* A lock is held for as long as a disk takes to write a record. */
#define LOCKED_MS 2

/* Under the lock there is one writer, so one name for what is not yet a record will do; what a
 * killed writer has left under it is replaced. */
static const char unfinished[] = ".new";
static const char suffix[] = ".del";

/* mkdir -p; the last directory for root only. */
static int make_directories(const char *path)
{
    char prefix[sizeof VK_QUEUE];
    size_t size = strlen(path);

    for (size_t i = 1; i <= size; i++) {
        if (path[i] != '/' && path[i] != '\0')
            continue;
        memcpy(prefix, path, i);
        prefix[i] = '\0';
        if (mkdir(prefix, i < size ? 0755 : 0700) != 0 && errno != EEXIST)
            return -errno;
    }
    return 0;
}

/* A link in either place would have root write where somebody else wishes. */
static int open_directory(void)
{
    const int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    int fd = open(VK_QUEUE, flags);

    if (fd < 0 && errno == ENOENT) {
        int error = make_directories(VK_QUEUE);

        if (error)
            return error;
        fd = open(VK_QUEUE, flags);
    }
    return fd < 0 ? -errno : fd;
}

static int take_lock(instant deadline)
{
    int fd = open(VK_QUEUE_LOCK, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    int error;

    if (fd < 0)
        return -errno;
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        error = errno;
        if (error == EINTR || (error == EWOULDBLOCK && rest(LOCKED_MS, deadline)))
            continue;
        close(fd);
        return error == EWOULDBLOCK ? -ETIMEDOUT : -error;
    }
    return fd;
}

int queue_lock(struct queue *queue, instant deadline)
{
    queue->directory = open_directory();
    if (queue->directory < 0)
        return queue->directory;
    queue->lock = take_lock(deadline);
    if (queue->lock < 0) {
        close(queue->directory);
        return queue->lock;
    }
    return 0;
}

void queue_unlock(struct queue *queue)
{
    close(queue->lock);
    close(queue->directory);
}

static bool is_record(const char *name)
{
    size_t size = strlen(name);

    return size >= sizeof suffix && strcmp(name + size - (sizeof suffix - 1), suffix) == 0;
}

/* How many records there are, or -errno. */
static int count_records(int directory)
{
    static _Alignas(struct dirent64) char entries[32 * 1024];
    int records = 0;
    ssize_t size;

    while ((size = getdents64(directory, (void *)entries, sizeof entries)) > 0) {
        for (ssize_t at = 0; at < size;) {
            const struct dirent64 *entry = (const void *)(entries + at);

            records += is_record(entry->d_name);
            at += entry->d_reclen;
        }
    }
    return size < 0 ? -errno : records;
}

/* Write `value` in decimal, at least `digits` of it; returns where it ends. */
static char *put_number(char *at, uint64_t value, int digits)
{
    char reversed[20];
    int size = 0;

    while (value > 0 || size < digits) {
        reversed[size++] = (char)('0' + value % 10);
        value /= 10;
    }
    while (size > 0)
        *at++ = reversed[--size];
    return at;
}

/* A name that no record has: the time, in as many digits as it ever takes, so that names sort. */
static void name_record(int directory, char name[static 64])
{
    struct timespec time;
    struct stat other;
    uint64_t nanoseconds;
    char *end;

    clock_gettime(CLOCK_REALTIME, &time);
    nanoseconds = (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
    do {
        end = put_number(name, nanoseconds++, 20);
        *end++ = '-';
        end = put_number(end, (uint64_t)getpid(), 1);
        memcpy(end, suffix, sizeof suffix);
        /* The clock may have been set back, and runtimes in containers share process ids. */
    } while (fstatat(directory, name, &other, AT_SYMLINK_NOFOLLOW) == 0);
}

static int write_all(int fd, const unsigned char *bytes, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, bytes, size);

        if (n >= 0) {
            bytes += n;
            size -= (size_t)n;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

/* Write the request to a file that is no record yet, and have the disk keep it; 0 or -errno. */
static int write_unfinished(int directory, const struct request *request)
{
    int fd, error;

    if (unlinkat(directory, unfinished, 0) != 0 && errno != ENOENT)
        return -errno;
    fd = openat(directory, unfinished, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    error = write_all(fd, request->frame, request_size(request));
    if (!error && fsync(fd) != 0)
        error = -errno;
    if (close(fd) != 0 && !error)
        error = -errno;
    return error;
}

int queue_add(const struct queue *queue, const struct request *request)
{
    char name[64];
    int records = count_records(queue->directory);
    int error;

    if (records < 0)
        return records;
    if (records >= VK_QUEUE_RECORDS)
        return QUEUE_FULL;
    error = write_unfinished(queue->directory, request);
    if (!error) {
        name_record(queue->directory, name);
        if (renameat(queue->directory, unfinished, queue->directory, name) != 0)
            error = -errno;
    }
    if (error) {
        unlinkat(queue->directory, unfinished, 0);
        return error;
    }
    return fsync(queue->directory) != 0 ? -errno : 0;
}
