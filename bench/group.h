/* A memory control group (v1 or v2) of one's own, for tools that measure from outside.  Owns the folder
 * of the group until its maker removes it. */
#ifndef BENCH_GROUP_H
#define BENCH_GROUP_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

struct group {
    char path[512];
    int v2;
};

static inline int group_put(const char *dir, const char *file, const char *text)
{
    char path[640];
    (void)snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *f = fopen(path, "w");
    if (!f) return -1;
    const int bad = fputs(text, f) < 0;
    return fclose(f) || bad ? -1 : 0;
}

/* The number behind key in a file, or the file's only number when key is NULL. */
static inline uint64_t group_get(const char *dir, const char *file, const char *key)
{
    char path[640], line[256];
    uint64_t n = 0;
    (void)snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        const size_t k = key ? strlen(key) : 0;
        if (key && (strncmp(line, key, k) || line[k] != ' ')) continue;
        n = strtoull(line + k, NULL, 10);
        break;
    }
    (void)fclose(f);
    return n;
}

/* A new group under `root`, if the memory controller can be used there. */
static inline int group_make_at(struct group *g, const char *root, int v2, uint64_t limit)
{
    char text[32];
    (void)snprintf(g->path, sizeof g->path, "%s/confined-%d", root, (int)getpid());
    g->v2 = v2;
    if (v2) (void)group_put(root, "cgroup.subtree_control", "+memory");
    (void)rmdir(g->path); /* an empty one of a run with this number that was killed */
    if (mkdir(g->path, 0755)) return -1;
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)limit);
    const char *file = v2 ? "memory.max" : "memory.limit_in_bytes";
    if (access(g->path, W_OK) || (limit && group_put(g->path, file, text)) ||
        !group_get(g->path, v2 ? "memory.stat" : "memory.limit_in_bytes", v2 ? "anon" : NULL)) {
        struct stat st;
        char probe[640];
        (void)snprintf(probe, sizeof probe, "%s/%s", g->path, file);
        if (limit || stat(probe, &st)) {
            (void)rmdir(g->path);
            return -1;
        }
    }
    if (v2) (void)group_put(g->path, "memory.swap.max", "0");
    return 0;
}

static inline int group_make(struct group *g, uint64_t limit)
{
    static const struct { const char *root; int v2; } at[] = {
        {"/sys/fs/cgroup/memory", 0}, {"/sys/fs/cgroup", 1}, {"/sys/fs/cgroup/unified", 1}};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        if (!group_make_at(g, at[i].root, at[i].v2, limit)) return 0;
    return -1;
}

static inline uint64_t group_rss(pid_t pid)
{
    char path[64];
    unsigned long long size = 0, rss = 0;
    (void)snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    if (fscanf(f, "%llu %llu", &size, &rss) != 2) rss = 0;
    (void)fclose(f);
    return rss * (uint64_t)sysconf(_SC_PAGESIZE);
}

#endif
