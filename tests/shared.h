/* Where the optional reference files are: $TESSERA_SHARED, else ../shared beside the repository.
 * Tests that need them skip, and say so, when they are not there. */
#ifndef TESTS_SHARED_H
#define TESTS_SHARED_H

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Fills path with the file's name; false, with a line on stdout, when it is not there. */
static inline int shared_file(char *path, size_t cap, const char *name)
{
    const char *root = getenv("TESSERA_SHARED");
    (void)snprintf(path, cap, "%s/%s", root ? root : "../shared", name);
    if (!access(path, R_OK)) return 1;
    printf("[  NOTE    ] %s is not there: its checks are skipped\n", path);
    return 0;
}

/* Reads a whole file; *n gets its bytes; NULL when it cannot.  Caller frees. */
static inline char *shared_slurp(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    if (!f) return NULL;
    (void)fseek(f, 0, SEEK_END);
    long size = ftell(f);
    (void)fseek(f, 0, SEEK_SET);
    char *buf = malloc((size_t)size + 1);
    *n = buf ? fread(buf, 1, (size_t)size, f) : 0;
    if (buf) buf[*n] = 0;
    (void)fclose(f);
    return buf;
}

#endif
