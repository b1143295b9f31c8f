/* Frames between the program and the agent, version 1 of their protocol.
 *
 * A connection carries one request and one reply. Either is a header of 16 bytes (the magic, then
 * two numbers of 32 bits, big-endian) and what the header announces:
 *
 *     request   magic, length of environment, length of input; environment, input
 *     reply     magic, exit status (0 or 1), length of output; output
 *
 * The environment is every variable whose name begins with CNI_, as NAME=VALUE and a zero byte;
 * the input and the output are those of the program. Nothing here looks into any of them.
 * netvirt/cni/frames.py says the same in Python.
 */
#ifndef VK_FRAME_H
#define VK_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HEADER_BYTES 16
#define ENVIRONMENT_MAX (64 * 1024)
#define INPUT_MAX (1024 * 1024)
#define OUTPUT_MAX (1024 * 1024)

/* A frame in the making: the header is written last, by request_seal(). */
struct request {
    size_t environment;
    size_t input;
    /* One byte more than a frame has, so that input that is too large shows itself. */
    unsigned char frame[HEADER_BYTES + ENVIRONMENT_MAX + INPUT_MAX + 1];
};

/* A frame as far as it has arrived. */
struct reply {
    size_t arrived;
    /* One byte more than a frame has, so that something that follows it shows itself. */
    unsigned char frame[HEADER_BYTES + OUTPUT_MAX + 1];
};

enum progress { REPLY_PARTIAL, REPLY_WHOLE, REPLY_BAD };

/* Put in the variables of CNI; false if they are too many. */
bool request_add_environment(struct request *request, char *const *environment);

/* Where input goes, and how much more of it can be taken. One byte of this room is too much. */
unsigned char *request_room(struct request *request, size_t *size);

void request_seal(struct request *request);

static inline size_t request_size(const struct request *request)
{
    return HEADER_BYTES + request->environment + request->input;
}

/* What to think of a reply, as early as that can be said. */
enum progress reply_progress(const struct reply *reply);

/* Of a whole reply. */
int reply_status(const struct reply *reply);
const unsigned char *reply_output(const struct reply *reply, size_t *size);

#endif
