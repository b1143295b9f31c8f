/* The queue of DELs for an agent that is away: a directory of records under a lock.
 *
 * A record is a file NANOSECONDS-PID.del that holds a request. It is complete when it has its
 * name, and on disk when queue_add() returns. netvirt/backends/cni_queue.py takes it from there.
 */
#ifndef VK_QUEUE_H
#define VK_QUEUE_H

#include "deadline.h"
#include "frame.h"

/* What queue_add() returns when there are VK_QUEUE_RECORDS of them. */
#define QUEUE_FULL 1

struct queue {
    int directory;
    int lock;
};

/* Make the directory if need be, and take the lock; 0, or -errno. */
int queue_lock(struct queue *queue, instant deadline);

void queue_unlock(struct queue *queue);

/* 0, QUEUE_FULL, or -errno and nothing is left behind. Hold the lock. */
int queue_add(const struct queue *queue, const struct request *request);

#endif
