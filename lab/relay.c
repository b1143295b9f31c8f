/* virtlab-relay DELAY_US FROM TO READY: carries Ethernet frames between two links, and holds those
 * that come from FROM for DELAY_US microseconds. Frames from TO pass at once, so that what goes from
 * one host of a lab to another, through the relay of each, is held once.
 *
 * The delay is the same for every frame, so one queue in order of arrival is all there is. A frame
 * that would make the queue longer than QUEUE_BYTES is dropped, as a network card's would be.
 * When both links are open, the file READY is made. The program ends when a link is gone. */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <arpa/inet.h>
#include <time.h>
#include <unistd.h>

enum {
    LONGEST_FRAME = 65536 + 64,
    QUEUE_BYTES = 64 << 20,
    SOCKET_BYTES = 32 << 20,
    /* Frames taken from one link before the other, and the queue, are looked at again. */
    BURST = 64,
};

struct frame {
    struct frame *next;
    int64_t due_ns;
    size_t length;
    unsigned char bytes[];
};

static struct frame *first;
static struct frame **last = &first;
static size_t queued_bytes;

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int fail(const char *what, const char *which)
{
    fprintf(stderr, "virtlab-relay: %s %s: %s\n", what, which, strerror(errno));
    return 1;
}

static int open_link(const char *name)
{
    int link = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (link < 0)
        return -1;
    int bytes = SOCKET_BYTES, yes = 1;
    /* A burst of a whole object at the default 208 KiB loses frames. */
    setsockopt(link, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
    setsockopt(link, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
    setsockopt(link, SOL_PACKET, PACKET_QDISC_BYPASS, &yes, sizeof yes);
    if (setsockopt(link, SOL_PACKET, PACKET_IGNORE_OUTGOING, &yes, sizeof yes) < 0)
        return -1;
    struct sockaddr_ll address = {
        .sll_family = AF_PACKET,
        .sll_protocol = htons(ETH_P_ALL),
        .sll_ifindex = (int)if_nametoindex(name),
    };
    if (address.sll_ifindex == 0 || bind(link, (struct sockaddr *)&address, sizeof address) < 0)
        return -1;
    return link;
}

/* Whether the link is still there. A frame that it has no room for is lost, as on a wire. */
static bool put(int link, const unsigned char *bytes, size_t length)
{
    return send(link, bytes, length, 0) >= 0 || (errno != ENODEV && errno != ENXIO);
}

static bool take(int link, unsigned char *bytes, ssize_t *length)
{
    *length = recv(link, bytes, LONGEST_FRAME, 0);
    if (*length < 0 && errno == ENETDOWN) {
        /* Said once when a link goes down; it may come up again. */
        *length = 0;
        return true;
    }
    return *length >= 0 || errno == EAGAIN || errno == EINTR;
}

static void hold(const unsigned char *bytes, size_t length, int64_t delay_ns)
{
    struct frame *frame;
    if (queued_bytes + length > QUEUE_BYTES || !(frame = malloc(sizeof *frame + length)))
        return;
    frame->next = NULL;
    frame->due_ns = now_ns() + delay_ns;
    frame->length = length;
    memcpy(frame->bytes, bytes, length);
    *last = frame;
    last = &frame->next;
    queued_bytes += length;
}

static bool release(int link)
{
    while (first && first->due_ns <= now_ns()) {
        struct frame *frame = first;
        bool there = put(link, frame->bytes, frame->length);
        first = frame->next;
        if (!first)
            last = &first;
        queued_bytes -= frame->length;
        free(frame);
        if (!there)
            return false;
    }
    return true;
}

static int carry(int from, int to, int64_t delay_ns)
{
    static unsigned char bytes[LONGEST_FRAME];
    struct pollfd links[] = {{.fd = from, .events = POLLIN}, {.fd = to, .events = POLLIN}};
    ssize_t length;
    for (;;) {
        struct timespec wait = {0}, *until = NULL;
        if (first) {
            int64_t left_ns = first->due_ns - now_ns();
            if (left_ns > 0) {
                wait.tv_sec = left_ns / 1000000000;
                wait.tv_nsec = left_ns % 1000000000;
            }
            until = &wait;
        }
        if (ppoll(links, 2, until, NULL) < 0 && errno != EINTR)
            return fail("cannot wait for", "frames");
        if (!release(to))
            return fail("cannot write to", "the far link");
        for (int n = 0; n < BURST; n++) {
            if (!take(from, bytes, &length))
                return fail("cannot read from", "the near link");
            if (length <= 0)
                break;
            hold(bytes, (size_t)length, delay_ns);
        }
        for (int n = 0; n < BURST; n++) {
            if (!take(to, bytes, &length))
                return fail("cannot read from", "the far link");
            if (length <= 0)
                break;
            if (!put(from, bytes, (size_t)length))
                return fail("cannot write to", "the near link");
        }
    }
}

int main(int argc, char **argv)
{
    char *end = NULL;
    long delay_us = argc == 5 ? strtol(argv[1], &end, 10) : -1;
    if (delay_us < 0 || delay_us > 10000000 || *end) {
        fprintf(stderr, "usage: virtlab-relay DELAY_US FROM TO READY\n");
        return 2;
    }
    int from = open_link(argv[2]), to = from < 0 ? -1 : open_link(argv[3]);
    if (to < 0)
        return fail("cannot open link", from < 0 ? argv[2] : argv[3]);
    /* By default, the kernel may wake a process 50 us late. */
    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
    /* A wire does not wait for its turn behind the programs that use it; where that is not
     * allowed, it does. */
    struct sched_param priority = {.sched_priority = 1};
    sched_setscheduler(0, SCHED_FIFO, &priority);
    int ready = open(argv[4], O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    if (ready < 0)
        return fail("cannot make", argv[4]);
    close(ready);
    return carry(from, to, delay_us * 1000);
}
