/* Where the optional reference files are: $TESSERA_SHARED, else ../shared beside the repository.
 * Tests that need them skip, and say so, when they are not there. */
#ifndef TESTS_SHARED_H
#define TESTS_SHARED_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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

/* The first n ids of a text, with commas, blanks or ends of lines between; false when there are fewer. */
static inline int shared_ids(const char *path, int n, int32_t *ids)
{
    size_t bytes = 0;
    char *text = shared_slurp(path, &bytes), *at = text, *end;
    int i = 0;
    for (; text && i < n; i++, at = end + strspn(end, ", \n")) {
        ids[i] = (int32_t)strtol(at, &end, 10);
        if (end == at) break;
    }
    free(text);
    return i == n;
}

#endif
