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
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>

#include "bench/group.h"

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
    const int in = !group_put(g->path, "cgroup.procs", text);
    if (in && write(go[1], "x", 1) != 1) return 1;
    (void)close(go[1]);
    uint64_t rss = 0;
    struct rusage use;
    const struct timespec ms10 = {0, 10000000};
    while (!wait4(pid, &status, WNOHANG, &use)) {
        const uint64_t now = group_rss(pid);
        if (now > rss) rss = now;
        (void)nanosleep(&ms10, NULL);
    }
    if ((uint64_t)use.ru_maxrss * 1024 > rss) rss = (uint64_t)use.ru_maxrss * 1024;
    const uint64_t peak = group_get(g->path, g->v2 ? "memory.peak" : "memory.max_usage_in_bytes", NULL);
    const uint64_t killed = group_get(g->path, g->v2 ? "memory.events" : "memory.oom_control", "oom_kill");
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
    if (group_make(&g, strtoull(argv[1], NULL, 10))) {
        (void)fprintf(stderr, "confined: no control group for memory can be made here\n");
        return 77;
    }
    const int rc = run(&g, argv + 2);
    for (int i = 0; i < 50 && rmdir(g.path) && errno == EBUSY; i++)
        (void)nanosleep(&(struct timespec){0, 10000000}, NULL);
    return rc;
}
