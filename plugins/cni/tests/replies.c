/* Replies at random, put to the program's own code: replies COUNT SEED.
 *
 * The program is linked as it is, but for main() and connection_open(): here it gets one end of a
 * pair of sockets, into which a reply was written before: a good one with a few things changed.
 * Whether a reply is good is decided anew here, and compared with what the program does. Prints
 * each answer of the program's own once, for somebody else to look at as JSON.
 */
#define main program_main
#include "../main.c"
#undef main

#include <endian.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/socket.h>

#define REPLY_MAX 20000
#define PIECES_MAX 8

/* A reply, in pieces that arrive one by one, and what its sender does then. */
struct script {
    unsigned char bytes[REPLY_MAX];
    size_t size;
    size_t ends[PIECES_MAX];
    int pieces;
    enum { HANGS, CLOSES, SHUTS_DOWN } then;
};

static struct script script;
static int agent = -1;
static int output_file;
static unsigned replies_good, replies_bad;
static unsigned long long seed;

/* xorshift64* */
static unsigned random_below(unsigned limit)
{
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (unsigned)((seed * 2685821657736338717ULL) >> 33) % limit;
}

static void fault(const char *what)
{
    fprintf(stderr, "reply of %zu bytes in %d pieces: %s\n", script.size, script.pieces, what);
    for (size_t i = 0; i < script.size && i < 64; i++)
        fprintf(stderr, "%02x", script.bytes[i]);
    fputc('\n', stderr);
    abort();
}

static void write_script(void)
{
    static const unsigned interesting[] = {0, 1, 2, 255, 256, 1024 * 1024, 1024 * 1024 + 1,
                                           0x7fffffff, 0x80000000, 0xffffffff};
    unsigned output = random_below(4) ? random_below(300) : random_below(REPLY_MAX - 100);
    uint32_t wire;

    memcpy(script.bytes, "VKCNI\0\0\1", 8);
    wire = htobe32(random_below(2));
    memcpy(script.bytes + 8, &wire, 4);
    wire = htobe32(output);
    memcpy(script.bytes + 12, &wire, 4);
    for (unsigned i = 0; i < output; i++)
        script.bytes[16 + i] = (unsigned char)random_below(256);
    script.size = 16 + output;

    switch (random_below(8)) {
    case 0: /* A bit of the header */
        script.bytes[random_below(16)] ^= (unsigned char)(1 << random_below(8));
        break;
    case 1: /* A number of the header */
        wire = htobe32(interesting[random_below(sizeof interesting / sizeof *interesting)]);
        memcpy(script.bytes + 8 + 4 * random_below(2), &wire, 4);
        break;
    case 2: /* Cut short */
        script.size = random_below((unsigned)script.size);
        break;
    case 3: /* Cut short in the header */
        script.size = random_below(17);
        break;
    case 4: /* Something follows */
        script.size += 1 + random_below(50);
        break;
    case 5: /* Noise */
        script.size = random_below(100);
        for (size_t i = 0; i < script.size; i++)
            script.bytes[i] = (unsigned char)random_below(256);
        break;
    default:
        break;
    }

    script.pieces = 0;
    for (size_t end = 0; end < script.size;) {
        size_t left = script.size - end;

        end += script.pieces == PIECES_MAX - 1 || random_below(3) == 0
                   ? left
                   : 1 + random_below((unsigned)(left < 40 ? left : 40));
        script.ends[script.pieces++] = end;
    }
    script.then = random_below(60) == 0 ? HANGS : random_below(2) ? CLOSES : SHUTS_DOWN;
}

/* Takes the place of that in connection.c: the agent's end of the pair has said it all. A socket
 * of packets delivers pieces as they were cut. */
int connection_open(instant deadline)
{
    int type = random_below(2) ? SOCK_STREAM : SOCK_SEQPACKET;
    int pair[2];
    size_t begin = 0;

    (void)deadline;
    if (agent >= 0)
        close(agent);
    if (socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, pair) != 0)
        fault("no socket");
    agent = pair[1];
    if (type == SOCK_STREAM) {
        script.ends[0] = script.size;
        script.pieces = script.size > 0;
    }
    for (int i = 0; i < script.pieces; begin = script.ends[i++])
        if (send(agent, script.bytes + begin, script.ends[i] - begin, 0) < 0)
            fault("not sent");
    if (script.then == CLOSES) {
        close(agent);
        agent = -1;
    } else if (script.then == SHUTS_DOWN) {
        shutdown(agent, SHUT_WR);
    }
    return pair[0];
}

/* Whether the reply is a good one, looked at after each piece; how much of it is output. */
static bool is_good(size_t *output)
{
    for (int i = 0; i < script.pieces; i++) {
        size_t arrived = script.ends[i];
        uint32_t status, size;

        if (memcmp(script.bytes, "VKCNI\0\0\1", arrived < 8 ? arrived : 8) != 0)
            return false;
        if (arrived < 16)
            continue;
        memcpy(&status, script.bytes + 8, 4);
        memcpy(&size, script.bytes + 12, 4);
        *output = be32toh(size);
        if (be32toh(status) > 1 || *output > 1024 * 1024 || arrived > 16 + *output)
            return false;
        if (arrived == 16 + *output)
            return true;
    }
    return false;
}

/* Have Python look at an answer that was not met before. */
static void print_once(const unsigned char *bytes, size_t size)
{
    static unsigned char met[64][1024];
    static size_t sizes[64];
    size_t i = 0;

    if (size > sizeof met[0])
        fault("an answer of its own is too long");
    for (; i < 64 && sizes[i]; i++)
        if (sizes[i] == size && memcmp(met[i], bytes, size) == 0)
            return;
    if (i == 64)
        fault("too many different answers of its own");
    memcpy(met[i], bytes, size);
    sizes[i] = size;
    if (write(STDERR_FILENO, bytes, size) < 0)
        fault("no standard error");
}

static void try_one(const struct request *request, struct reply *reply)
{
    static unsigned char output[REPLY_MAX];
    /* A record takes a disk's time. */
    enum verb verb = random_below(20) ? random_below(VERBS) : DEL;
    instant start = now();
    size_t expected;
    bool good;
    ssize_t size;
    int status;

    if (verb == DEL && random_below(10))
        verb = ADD;
    write_script();
    if (ftruncate(output_file, 0) != 0 || lseek(output_file, 0, SEEK_SET) != 0)
        fault("no file for output");
    status = put_to_agent(verb, request, reply, start + 2, start + 5000);
    size = pread(output_file, output, sizeof output, 0);
    good = is_good(&expected);
    replies_good += good;
    replies_bad += !good;
    if (now() - start > 4000)
        fault("it took too long");
    if (good) {
        if (status != script.bytes[11])
            fault("another status than the agent's");
        if ((size_t)size != expected || memcmp(output, script.bytes + 16, expected) != 0)
            fault("another output than the agent's");
    } else if (verb == DEL) {
        if (status != 0 || size != 0)
            fault("a DEL is to be left to the queue, quietly");
    } else {
        if (status != (verb == VERSION ? 0 : 1))
            fault("another status than its own");
        print_once(output, (size_t)size);
    }
}

int main(int argc, char **argv)
{
    static struct request request;
    static struct reply reply;
    char *variables[] = {(char[]){"CNI_COMMAND=ADD"}, NULL};

    if (argc != 3)
        return 2;
    seed = strtoull(argv[2], NULL, 10) * 2 + 1;
    signal(SIGPIPE, SIG_IGN);
    output_file = memfd_create("output", 0);
    if (dup2(output_file, STDOUT_FILENO) < 0)
        return 2;
    request_add_environment(&request, variables);
    request_seal(&request);
    for (long i = 0; i < strtol(argv[1], NULL, 10); i++)
        try_one(&request, &reply);
    /* A fuzzer that makes replies of one kind only shows nothing. */
    if (replies_good < 10 || replies_bad < 10)
        return 3;
    return 0;
}
