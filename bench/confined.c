/* confined LIMIT CMD...: runs a command in a memory control group of its own (v1 or v2) and says from
 * outside what it took: the group's peak charge (page cache and kernel memory included), the peak
 * resident set (sampled every 10 ms, and what the kernel noted), whether anything was killed.
 *
 * LIMIT is in bytes, 0 = none.  One line on stderr when the command has ended:
 *     confined rc=0 peak=123 rss=123 killed=0
 * Exit code: the command's (128 + signal when it was killed), 77 when no group can be made here.
 * Owns the group; removes it. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct group {
    char path[512];
    int v2;
};

static int put(const char *dir, const char *file, const char *text)
{
    char path[640];
    (void)snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *f = fopen(path, "w");
    if (!f) return -1;
    const int bad = fputs(text, f) < 0;
    return fclose(f) || bad ? -1 : 0;
}

/* The number behind key in a file, or the file's only number when key is NULL. */
static uint64_t get(const char *dir, const char *file, const char *key)
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
static int make(struct group *g, const char *root, int v2, uint64_t limit)
{
    char text[32];
    (void)snprintf(g->path, sizeof g->path, "%s/confined-%d", root, (int)getpid());
    g->v2 = v2;
    if (v2) (void)put(root, "cgroup.subtree_control", "+memory");
    (void)rmdir(g->path); /* an empty one of a run with this number that was killed */
    if (mkdir(g->path, 0755)) return -1;
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)limit);
    const char *file = v2 ? "memory.max" : "memory.limit_in_bytes";
    if (access(g->path, W_OK) || (limit && put(g->path, file, text)) ||
        !get(g->path, v2 ? "memory.stat" : "memory.limit_in_bytes", v2 ? "anon" : NULL)) {
        struct stat st;
        char probe[640];
        (void)snprintf(probe, sizeof probe, "%s/%s", g->path, file);
        if (limit || stat(probe, &st)) {
            (void)rmdir(g->path);
            return -1;
        }
    }
    if (v2) (void)put(g->path, "memory.swap.max", "0");
    return 0;
}

static int make_any(struct group *g, uint64_t limit)
{
    static const struct { const char *root; int v2; } at[] = {
        {"/sys/fs/cgroup/memory", 0}, {"/sys/fs/cgroup", 1}, {"/sys/fs/cgroup/unified", 1}};
    for (size_t i = 0; i < sizeof at / sizeof *at; i++)
        if (!make(g, at[i].root, at[i].v2, limit)) return 0;
    return -1;
}

static uint64_t rss_now(pid_t pid)
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

static int run(struct group *g, char **argv)
{
    int go[2], status = 0;
    if (pipe(go)) return 1;
    const pid_t pid = fork();
    if (pid < 0) return 1;
    if (!pid) {
        char c;
        (void)close(go[1]);
        if (read(go[0], &c, 1) != 1) _exit(127); /* until it is in the group */
        (void)close(go[0]);
        execvp(argv[0], argv);
        _exit(127);
    }
    char text[32];
    (void)snprintf(text, sizeof text, "%d", (int)pid);
    (void)close(go[0]);
    const int in = !put(g->path, "cgroup.procs", text);
    if (in && write(go[1], "x", 1) != 1) return 1;
    (void)close(go[1]);
    uint64_t rss = 0;
    struct rusage use;
    const struct timespec ms10 = {0, 10000000};
    while (!wait4(pid, &status, WNOHANG, &use)) {
        const uint64_t now = rss_now(pid);
        if (now > rss) rss = now;
        (void)nanosleep(&ms10, NULL);
    }
    if ((uint64_t)use.ru_maxrss * 1024 > rss) rss = (uint64_t)use.ru_maxrss * 1024;
    const uint64_t peak = get(g->path, g->v2 ? "memory.peak" : "memory.max_usage_in_bytes", NULL);
    const uint64_t killed = get(g->path, g->v2 ? "memory.events" : "memory.oom_control", "oom_kill");
    const int rc = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    (void)fprintf(stderr, "confined rc=%d peak=%llu rss=%llu killed=%llu\n", rc,
                  (unsigned long long)peak, (unsigned long long)rss, (unsigned long long)killed);
    return in ? rc : 77;
}

int main(int argc, char **argv)
{
    struct group g;
    if (argc < 3) {
        (void)fprintf(stderr, "usage: confined LIMIT CMD...\n");
        return 2;
    }
    if (make_any(&g, strtoull(argv[1], NULL, 10))) {
        (void)fprintf(stderr, "confined: no control group for memory can be made here\n");
        return 77;
    }
    const int rc = run(&g, argv + 2);
    for (int i = 0; i < 50 && rmdir(g.path) && errno == EBUSY; i++)
        (void)nanosleep(&(struct timespec){0, 10000000}, NULL);
    return rc;
}
