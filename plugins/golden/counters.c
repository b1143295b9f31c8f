#include "counters.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static struct counters nowhere;

struct counters *counters = &nowhere;

int counters_open(const char *path) {
    char draft[4096];
    int length = snprintf(draft, sizeof draft, "%s.draft", path);
    if (length < 0 || (size_t)length >= sizeof draft)
        return -1;
    int file = open(draft, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file < 0)
        return -1;
    void *mapped = MAP_FAILED;
    if (ftruncate(file, sizeof(struct counters)) == 0)
        mapped = mmap(NULL, sizeof(struct counters), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED)
        return -1;
    struct counters *made = mapped;
    atomic_store(&made->process, (uint64_t)getpid());
    memcpy(made->magic, COUNTERS_MAGIC, sizeof made->magic);
    /* A reader sees the counters of the server before or these, never half of them. */
    if (rename(draft, path) != 0) {
        munmap(mapped, sizeof(struct counters));
        return -1;
    }
    counters = made;
    return 0;
}
