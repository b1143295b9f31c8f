/* What the program says to the runtime: on standard output, as the CNI specification has it. */
#ifndef VK_ANSWER_H
#define VK_ANSWER_H

#include <stddef.h>

#include "deadline.h"

/* Codes of the specification's section "Error". */
#define CNI_BAD_ENVIRONMENT "4"
#define CNI_IO_FAILURE "5"
#define CNI_UNDECODABLE "6"
#define CNI_TRY_AGAIN_LATER "11"
#define CNI_NOT_AVAILABLE "50"

/* Exit statuses. */
enum { DONE = 0, FAILED = 1, MISUSED = 2 };

/* Write it to standard output. Returns `status`, or FAILED if not all of it could be written. */
int answer(int status, const void *bytes, size_t size, instant deadline);

/* Say something to whoever reads standard error. */
void complain(const char *line, instant deadline);

/* Answer with an error object, and return FAILED. The message consists of parts, and NULL; what
 * does not fit into a message is cut off. */
int answer_error(const char *code, const char *const *message, const char *details,
                 instant deadline);

#endif
