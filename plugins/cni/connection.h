/* One question to the agent, and its answer. */
#ifndef VK_CONNECTION_H
#define VK_CONNECTION_H

#include "deadline.h"
#include "frame.h"

enum outcome {
    ANSWERED,
    /* Nobody has read the request: there is no agent, or it went away before. */
    UNREACHABLE,
    /* It may have been read, and nothing came back: the agent went away, or hangs. */
    UNANSWERED,
    /* What came back is no reply. */
    GARBLED,
};

/* Connect to the agent's socket; a descriptor, or -errno. Waits only for a busy agent. */
int connection_open(instant deadline);

/* Send the request, receive the reply, close. Unless ANSWERED, `error` is the errno behind it. */
enum outcome connection_ask(int fd, const struct request *request, struct reply *reply,
                            instant deadline, int *error);

#endif
