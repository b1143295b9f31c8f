/* Says what the manifest on standard input holds, or why it is none. */
#include <stdio.h>
#include <stdlib.h>

#include "../manifest.h"

int main(void) {
    static uint8_t bytes[1 << 20];
    size_t length = fread(bytes, 1, sizeof bytes, stdin);
    /* Of its own length, so that a read beyond it is noticed. */
    uint8_t *exact = malloc(length ? length : 1);
    for (size_t i = 0; i < length; i++)
        exact[i] = bytes[i];
    struct manifest manifest;
    const char *fault = manifest_parse(&manifest, exact, length);
    if (fault) {
        printf("refused: %s\n", fault);
    } else {
        unsigned zeros = 0;
        for (uint32_t i = 0; i < manifest.chunks; i++)
            zeros += manifest_is_zero(&manifest, i);
        printf("%llu bytes in %u chunks, %u of zeros\n",
               (unsigned long long)manifest.size_bytes, manifest.chunks, zeros);
        manifest_free(&manifest);
    }
    free(exact);
    return 0;
}
