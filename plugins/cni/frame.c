#include "frame.h"

#include <endian.h>
#include <string.h>

#define MAGIC_BYTES 8

static const unsigned char magic[MAGIC_BYTES] = {'V', 'K', 'C', 'N', 'I', 0, 0, 1};

static void put_u32(unsigned char *at, size_t value)
{
    uint32_t wire = htobe32((uint32_t)value);

    memcpy(at, &wire, sizeof wire);
}

static uint32_t get_u32(const unsigned char *at)
{
    uint32_t wire;

    memcpy(&wire, at, sizeof wire);
    return be32toh(wire);
}

bool request_add_environment(struct request *request, char *const *environment)
{
    for (; *environment; environment++) {
        size_t size = strlen(*environment) + 1;

        /* execve(2) takes any string for a variable. */
        if (strncmp(*environment, "CNI_", 4) != 0 || !strchr(*environment, '='))
            continue;
        if (size > ENVIRONMENT_MAX - request->environment)
            return false;
        memcpy(request->frame + HEADER_BYTES + request->environment, *environment, size);
        request->environment += size;
    }
    return true;
}

unsigned char *request_room(struct request *request, size_t *size)
{
    *size = INPUT_MAX + 1 - request->input;
    return request->frame + request_size(request);
}

void request_seal(struct request *request)
{
    memcpy(request->frame, magic, MAGIC_BYTES);
    put_u32(request->frame + 8, request->environment);
    put_u32(request->frame + 12, request->input);
}

enum progress reply_progress(const struct reply *reply)
{
    size_t known = reply->arrived < MAGIC_BYTES ? reply->arrived : MAGIC_BYTES;
    size_t output;

    if (memcmp(reply->frame, magic, known) != 0)
        return REPLY_BAD;
    if (reply->arrived < HEADER_BYTES)
        return REPLY_PARTIAL;
    output = get_u32(reply->frame + 12);
    if (get_u32(reply->frame + 8) > 1 || output > OUTPUT_MAX)
        return REPLY_BAD;
    if (reply->arrived > HEADER_BYTES + output)
        return REPLY_BAD;
    return reply->arrived < HEADER_BYTES + output ? REPLY_PARTIAL : REPLY_WHOLE;
}

int reply_status(const struct reply *reply)
{
    return (int)get_u32(reply->frame + 8);
}

const unsigned char *reply_output(const struct reply *reply, size_t *size)
{
    *size = get_u32(reply->frame + 12);
    return reply->frame + HEADER_BYTES;
}
