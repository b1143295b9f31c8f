/* What is settled when the program is built. Tests build it with other paths and shorter times. */
#ifndef VK_CONFIG_H
#define VK_CONFIG_H

#ifndef VK_VERSION
#define VK_VERSION "unknown"
#endif

/* The agent listens here. */
#ifndef VK_SOCKET
#define VK_SOCKET "/run/virtkit/cni.sock"
#endif

/* Records of DELs lie in this directory; the lock file lies beside it. */
#ifndef VK_QUEUE
#define VK_QUEUE "/var/lib/virtkit/cni/queue"
#endif
#define VK_QUEUE_LOCK VK_QUEUE ".lock"
#ifndef VK_QUEUE_RECORDS
#define VK_QUEUE_RECORDS 10000
#endif

/* The longest that the program runs, waiting for standard input and output included. */
#ifndef VK_TOTAL_MS
#define VK_TOTAL_MS 30000
#endif
/* Of that, the longest until the agent has answered: it promises to within 20 s, and what remains
 * is for the queue. */
#ifndef VK_ANSWER_MS
#define VK_ANSWER_MS 25000
#endif
/* An agent that is restarted listens again within this time; an ADD waits for it. */
#ifndef VK_RESTART_MS
#define VK_RESTART_MS 2000
#endif
/* VERSION has an answer without the agent, and need not wait long for a better one. */
#ifndef VK_VERSION_MS
#define VK_VERSION_MS 2000
#endif

#endif
