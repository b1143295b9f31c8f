/* Talk to whoever supervises this server: one line on standard error. */
#ifndef VK_SAY_H
#define VK_SAY_H

void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
