/* Points in time on the monotonic clock, and waits that end there whatever happens. */
#ifndef VK_DEADLINE_H
#define VK_DEADLINE_H

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>

/* Milliseconds since some point in the past. */
typedef int64_t instant;

static inline instant now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (instant)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* What is left until a deadline, as poll(2) wants it; deadlines are at most a minute away. */
static inline int left_ms(instant deadline)
{
    instant left = deadline - now();

    return left > 0 ? (int)left : 0;
}

/* Wait until `fd` is ready for `events` or has an error to tell; 0, or -errno. */
static inline int wait_ready(int fd, short events, instant deadline)
{
    struct pollfd one = {.fd = fd, .events = events};

    for (;;) {
        int ready = poll(&one, 1, left_ms(deadline));

        if (ready > 0)
            return 0;
        if (ready == 0)
            return -ETIMEDOUT;
        if (errno != EINTR)
            return -errno;
    }
}

/* Sleep for a few milliseconds; false once the deadline has passed. */
static inline bool rest(int ms, instant deadline)
{
    int left = left_ms(deadline);

    if (left == 0)
        return false;
    /* To be woken early by a signal does no harm: whoever rests looks again. */
    poll(NULL, 0, ms < left ? ms : left);
    return true;
}

#endif
