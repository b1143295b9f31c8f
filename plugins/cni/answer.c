#include "answer.h"

#include <string.h>
#include <unistd.h>

/* A pipe that poll(2) calls writable takes PIPE_BUF bytes without blocking (pipe(7)). */
#define CHUNK_BYTES 4096

/* What a text may take up, with its escapes; and a part, so that none displaces the others. */
#define MESSAGE_END 3000
#define DETAILS_END 4000
#define PART_BYTES 800

struct text {
    size_t size;
    char bytes[4096];
};

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

static bool put(int fd, const char *at, size_t size, instant deadline)
{
    while (size > 0) {
        ssize_t n;

        if (wait_ready(fd, POLLOUT, deadline) != 0)
            return false;
        n = write(fd, at, smaller(size, CHUNK_BYTES));
        if (n >= 0) {
            at += n;
            size -= (size_t)n;
        } else if (errno != EINTR && errno != EAGAIN) {
            return false;
        }
    }
    return true;
}

int answer(int status, const void *bytes, size_t size, instant deadline)
{
    if (put(STDOUT_FILENO, bytes, size, deadline))
        return status;
    complain("virtkit-cni: the answer cannot be written to standard output.\n", deadline);
    return FAILED;
}

void complain(const char *line, instant deadline)
{
    put(STDERR_FILENO, line, strlen(line), deadline);
}

static void add(struct text *text, const char *s)
{
    size_t size = strlen(s);

    memcpy(text->bytes + text->size, s, size);
    text->size += size;
}

/* Add the inside of a JSON string (RFC 8259, section 7), up to `end`. */
static void add_escaped(struct text *text, const char *s, size_t end)
{
    static const char digits[] = "0123456789abcdef";

    for (; *s && text->size + sizeof "\\u0000" <= end; s++) {
        unsigned char c = (unsigned char)*s;

        if (c == '"' || c == '\\') {
            text->bytes[text->size++] = '\\';
            text->bytes[text->size++] = *s;
        } else if (c >= ' ' && c < 0x7f) {
            text->bytes[text->size++] = *s;
        } else if (c < 0x80) {
            add(text, "\\u00");
            text->bytes[text->size++] = digits[c >> 4];
            text->bytes[text->size++] = digits[c & 15];
        } else {
            /* It may be UTF-8 or anything else: the replacement character says so. */
            add(text, "\\ufffd");
        }
    }
}

int answer_error(const char *code, const char *const *message, const char *details,
                 instant deadline)
{
    struct text text = {.size = 0};

    add(&text, "{\"cniVersion\":\"1.1.0\",\"code\":");
    add(&text, code);
    add(&text, ",\"msg\":\"");
    for (; *message; message++)
        add_escaped(&text, *message, smaller(text.size + PART_BYTES, MESSAGE_END));
    add(&text, "\",\"details\":\"");
    add_escaped(&text, details, DETAILS_END);
    add(&text, "\"}\n");
    return answer(FAILED, text.bytes, text.size, deadline);
}
