/* The CNI program of virtkit: what a container runtime asks is put to the node agent.
 *
 * Read main() first. It passes on the environment and the input as they are and prints what
 * comes back; only when there is no agent to ask does it have something to say of its own.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "answer.h"
#include "config.h"
#include "connection.h"
#include "deadline.h"
#include "frame.h"
#include "queue.h"

/* How long to wait before looking for an agent that is being restarted again. */
#define ABSENT_MS 5

static const char versions[] =
    "{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}\n";

static const char help[] =
    "virtkit-cni " VK_VERSION ": joins containers to virtkit's tenant networks.\n"
    "\n"
    "Container runtimes call it, as the CNI specification has it (versions 0.3.1 to 1.1.0): the\n"
    "verb is in CNI_COMMAND, the network's configuration on standard input. It hands both to the\n"
    "node agent at " VK_SOCKET " and prints the agent's answer. A DEL that cannot be\n"
    "handed over is recorded in " VK_QUEUE "; the agent catches up.\n"
    "\n"
    "To use it, put it into the runtime's CNI directory under the name `virtkit`, beside a\n"
    "network configuration of that type: `nvctl cni install` does both.\n";

enum verb { ADD, CHECK, DEL, GC, STATUS, VERSION, VERBS };

static const char *const names[VERBS] = {"ADD", "CHECK", "DEL", "GC", "STATUS", "VERSION"};

/* What became of a request, and why. */
struct result {
    enum outcome outcome;
    int error;
};

static enum verb find_verb(const char *name)
{
    enum verb verb = 0;

    while (verb < VERBS && (!name || strcmp(name, names[verb]) != 0))
        verb++;
    return verb;
}

static const char *reason(int error)
{
    switch (error) {
    case ENODATA:
        return "it closed the connection";
    case EPIPE:
    case ECONNRESET:
        return "it went away";
    case ETIMEDOUT:
        return "it took too long";
    default:
        return strerror(error);
    }
}

/* A variable, for a message. */
static const char *or_none(const char *name)
{
    const char *value = getenv(name);

    return value && *value ? value : "(none)";
}

static int fail(enum verb verb, const char *code, const char *what, const char *why,
                const char *details, instant deadline)
{
    const char *message[] = {names[verb], " of interface ", or_none("CNI_IFNAME"), ", container ",
                             or_none("CNI_CONTAINERID"), ": ", what, why, ".", NULL};

    /* These are not about one container. */
    if (verb == GC || verb == STATUS || verb == VERSION) {
        message[1] = message[2] = message[3] = message[4] = "";
    }
    return answer_error(code, message, details, deadline);
}

/* 0, -EFBIG if it is too large, or -errno. */
static int read_input(struct request *request, instant deadline)
{
    for (;;) {
        size_t size;
        unsigned char *room = request_room(request, &size);
        int error = wait_ready(STDIN_FILENO, POLLIN, deadline);
        ssize_t n;

        if (error)
            return error;
        n = read(STDIN_FILENO, room, size);
        if (n == 0)
            return 0;
        if (n > 0)
            request->input += (size_t)n;
        else if (errno != EINTR && errno != EAGAIN)
            return -errno;
        if (request->input > INPUT_MAX)
            return -EFBIG;
    }
}

static struct result ask_once(const struct request *request, struct reply *reply, instant deadline)
{
    struct result result = {.outcome = UNREACHABLE};
    int fd = connection_open(deadline);

    if (fd < 0)
        result.error = -fd;
    else
        result.outcome = connection_ask(fd, request, reply, deadline, &result.error);
    return result;
}

/* Ask, and if nobody has read it ask again for `patience_ms`. */
static struct result ask(const struct request *request, struct reply *reply, int patience_ms,
                         instant deadline)
{
    struct result result = ask_once(request, reply, deadline);
    instant patience;

    if (result.outcome != UNREACHABLE || patience_ms == 0)
        return result;
    patience = now() + patience_ms;
    if (patience > deadline)
        patience = deadline;
    while (result.outcome == UNREACHABLE && rest(ABSENT_MS, patience))
        result = ask_once(request, reply, deadline);
    return result;
}

static int pass_on(const struct reply *reply, instant deadline)
{
    size_t size;
    const unsigned char *output = reply_output(reply, &size);

    return answer(reply_status(reply), output, size, deadline);
}

static int fail_without_agent(enum verb verb, struct result result, instant deadline)
{
    const char *code = verb == STATUS ? CNI_NOT_AVAILABLE : CNI_TRY_AGAIN_LATER;

    switch (result.outcome) {
    case UNREACHABLE:
        return fail(verb, code, "no node agent at " VK_SOCKET ": ", reason(result.error),
                    "Start virtkit's agent on this host, and try again.", deadline);
    case GARBLED:
        return fail(verb, code, "the node agent's answer is not understood", "",
                    "Install the CNI program and the agent of one release of virtkit.", deadline);
    default:
        return fail(verb, code, "the node agent at " VK_SOCKET " does not answer: ",
                    reason(result.error), "Its log says what keeps it. Try again.", deadline);
    }
}

/* Leave a DEL to the agent that will be. */
static int leave_record(const struct request *request, struct reply *reply, struct result result,
                        instant answer_by, instant deadline)
{
    struct queue queue;
    int error = queue_lock(&queue, deadline);

    /* Whoever limits the size of files gets an answer too. */
    signal(SIGXFSZ, SIG_IGN);

    /* The agent listens before it empties the queue. So it may be back, and then it is quicker. */
    if (!error && result.outcome == UNREACHABLE) {
        int fd = connection_open(0);

        if (fd >= 0) {
            queue_unlock(&queue);
            result.outcome = connection_ask(fd, request, reply, answer_by, &result.error);
            if (result.outcome == ANSWERED)
                return pass_on(reply, deadline);
            error = queue_lock(&queue, deadline);
        }
    }
    if (!error) {
        error = queue_add(&queue, request);
        queue_unlock(&queue);
    }
    if (!error)
        return DONE;
    if (error == QUEUE_FULL)
        return fail(DEL, CNI_TRY_AGAIN_LATER,
                    "the node agent does not answer, and " VK_QUEUE " is full", "",
                    "Start virtkit's agent on this host: it empties the queue.", deadline);
    return fail(DEL, CNI_TRY_AGAIN_LATER,
                "the node agent does not answer, and " VK_QUEUE " cannot be written: ",
                reason(-error), "Start virtkit's agent on this host, or mend the directory.",
                deadline);
}

/* Put the request to the agent and answer with what it says, or with what its silence means. */
static int put_to_agent(enum verb verb, const struct request *request, struct reply *reply,
                        instant answer_by, instant deadline)
{
    struct result result = ask(request, reply, verb == ADD ? VK_RESTART_MS : 0, answer_by);

    if (result.outcome == ANSWERED)
        return pass_on(reply, deadline);
    if (verb == VERSION)
        return answer(DONE, versions, sizeof versions - 1, deadline);
    if (verb == DEL)
        return leave_record(request, reply, result, answer_by, deadline);
    return fail_without_agent(verb, result, deadline);
}

static int serve_runtime(enum verb verb, instant answer_by, instant deadline)
{
    static struct request request;
    static struct reply reply;
    int error;

    if (!request_add_environment(&request, environ))
        return fail(verb, CNI_BAD_ENVIRONMENT, "the variables CNI_... exceed 64 KiB", "",
                    "Shorten CNI_ARGS.", deadline);
    error = read_input(&request, answer_by);
    if (error == -EFBIG)
        return fail(verb, CNI_UNDECODABLE, "the network configuration exceeds 1 MiB", "",
                    "Shorten it.", deadline);
    if (error)
        return fail(verb, CNI_IO_FAILURE, "the network configuration cannot be read from standard "
                    "input: ", reason(-error), "The runtime has to write it and close.", deadline);
    request_seal(&request);
    return put_to_agent(verb, &request, &reply, answer_by, deadline);
}

static int refuse_command(const char *command, instant deadline)
{
    const char *const message[] = {"CNI_COMMAND is ", command ? command : "not set",
                                   ", and has to be ADD, CHECK, DEL, GC, STATUS or VERSION.", NULL};

    return answer_error(CNI_BAD_ENVIRONMENT, message,
                        "This is a CNI plugin, to be called by a container runtime: name it in a "
                        "network configuration. See --help.", deadline);
}

static int serve_user(const char *argument, instant deadline)
{
    static const char version[] = "virtkit-cni " VK_VERSION "\n";

    if (strcmp(argument, "--version") == 0)
        return answer(DONE, version, sizeof version - 1, deadline);
    if (strcmp(argument, "--help") == 0)
        return answer(DONE, help, sizeof help - 1, deadline);
    complain("virtkit-cni: it takes no arguments but --help and --version.\n", deadline);
    return MISUSED;
}

int main(int argc, char **argv)
{
    const instant start = now();
    const instant deadline = start + VK_TOTAL_MS;
    const char *command = getenv("CNI_COMMAND");
    const enum verb verb = find_verb(command);

    /* A runtime that does not read, or has closed a descriptor, is told by the exit status. No
     * other descriptor is open when 0, 1 and 2 are used, so none is taken for one of them. */
    signal(SIGPIPE, SIG_IGN);
    if (argc > 1)
        return serve_user(argv[1], deadline);
    if (verb == VERBS)
        return refuse_command(command, deadline);
    return serve_runtime(verb, start + (verb == VERSION ? VK_VERSION_MS : VK_ANSWER_MS), deadline);
}
