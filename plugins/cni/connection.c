#include "connection.h"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "config.h"

/* How long to leave a full queue of connections alone. */
#define BUSY_MS 2

int connection_open(instant deadline)
{
    static const struct sockaddr_un agent = {.sun_family = AF_UNIX, .sun_path = VK_SOCKET};
    int error;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    _Static_assert(sizeof VK_SOCKET <= sizeof agent.sun_path, "VK_SOCKET is too long");
    if (fd < 0)
        return -errno;
    while (connect(fd, (const struct sockaddr *)&agent, sizeof agent) != 0) {
        error = errno;
        if (error == EINTR)
            continue;
        /* See "EAGAIN" in connect(2): the agent is there, and has yet to accept others. */
        if (error == EAGAIN && rest(BUSY_MS, deadline))
            continue;
        close(fd);
        return -error;
    }
    return fd;
}

/* 0 when all is sent, or -errno. */
static int send_request(int fd, const struct request *request, instant deadline)
{
    size_t sent = 0;

    while (sent < request_size(request)) {
        ssize_t n = send(fd, request->frame + sent, request_size(request) - sent, MSG_NOSIGNAL);

        if (n >= 0) {
            sent += (size_t)n;
        } else if (errno == EAGAIN) {
            int error = wait_ready(fd, POLLOUT, deadline);

            if (error)
                return error;
        } else if (errno != EINTR) {
            return -errno;
        }
    }
    return 0;
}

/* 0 when the reply is whole or bad, or -errno; the agent's closing is -ENODATA. */
static int receive_reply(int fd, struct reply *reply, instant deadline)
{
    while (reply_progress(reply) == REPLY_PARTIAL) {
        int error = wait_ready(fd, POLLIN, deadline);
        ssize_t n;

        if (error)
            return error;
        n = recv(fd, reply->frame + reply->arrived, sizeof reply->frame - reply->arrived, 0);
        if (n > 0)
            reply->arrived += (size_t)n;
        else if (n == 0)
            return -ENODATA;
        else if (errno != EINTR && errno != EAGAIN)
            return -errno;
    }
    return 0;
}

enum outcome connection_ask(int fd, const struct request *request, struct reply *reply,
                            instant deadline, int *error)
{
    int sent = send_request(fd, request, deadline);
    int received = 0;

    reply->arrived = 0;
    /* An agent may refuse a request before it has read all of it, and say why. */
    if (sent == 0 || sent == -EPIPE || sent == -ECONNRESET)
        received = receive_reply(fd, reply, deadline);
    close(fd);
    *error = sent ? -sent : -received;
    if (reply_progress(reply) == REPLY_WHOLE)
        return ANSWERED;
    if (reply->arrived > 0 && received != -ETIMEDOUT) {
        *error = EPROTO;
        return GARBLED;
    }
    /* A socket that is closed with something unread in it resets the connection (unix(7)), and
     * what is not read to its end has not been acted upon. */
    if (sent == -EPIPE || sent == -ECONNRESET || received == -ECONNRESET)
        return UNREACHABLE;
    return UNANSWERED;
}
