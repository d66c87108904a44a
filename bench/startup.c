/* How long a command takes from exec to the first byte that it prints, and how long reading takes
 * that long at best:
 *
 *     startup FILE BYTES THREADS CMD [ARG ...]
 *
 * reads BYTES of FILE with THREADS threads into buffers that stay in cache, then runs CMD with its
 * output in a pipe, and prints two numbers: milliseconds of the reading, milliseconds to the first
 * byte.  What CMD prints is swallowed; the exit code is 1 when it prints nothing or fails. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PIECE = 512 << 10, THREADS_MAX = 64 };

static double now(void)
{
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

struct share {
    int fd;
    long long from, to;
    int failed;
};

static void *read_share(void *arg)
{
    struct share *s = arg;
    char *buf = malloc(PIECE);
    for (long long at = s->from; at < s->to && !s->failed; at += PIECE) {
        const size_t n = s->to - at < PIECE ? (size_t)(s->to - at) : PIECE;
        s->failed = !buf || pread(s->fd, buf, n, (off_t)at) != (ssize_t)n;
    }
    free(buf);
    return NULL;
}

/* Milliseconds, negative when the file cannot be read. */
static double time_read(const char *path, long long bytes, int n)
{
    struct share s[THREADS_MAX];
    pthread_t t[THREADS_MAX];
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    const double start = now();
    int failed = 0, started = 0;
    for (; started < n; started++) {
        s[started] = (struct share){.fd = fd, .from = bytes / n * started,
                                    .to = started + 1 < n ? bytes / n * (started + 1) : bytes};
        if (pthread_create(&t[started], NULL, read_share, &s[started])) break;
    }
    for (int i = 0; i < started; i++) {
        (void)pthread_join(t[i], NULL);
        failed |= s[i].failed;
    }
    const double ms = 1e3 * (now() - start);
    (void)close(fd);
    return failed || started < n ? -1 : ms;
}

static double time_first_byte(char **argv)
{
    int to[2], status;
    char c[4096];
    if (pipe(to)) return -1;
    const double start = now();
    const pid_t pid = fork();
    if (pid < 0) return -1;
    if (!pid) {
        (void)dup2(to[1], STDOUT_FILENO);
        (void)close(to[0]);
        (void)close(to[1]);
        (void)execvp(argv[0], argv);
        _exit(127);
    }
    (void)close(to[1]);
    const ssize_t got = read(to[0], c, sizeof c);
    const double ms = 1e3 * (now() - start);
    while (read(to[0], c, sizeof c) > 0) {}
    (void)close(to[0]);
    if (waitpid(pid, &status, 0) != pid || status || got <= 0) return -1;
    return ms;
}

int main(int argc, char **argv)
{
    const long long bytes = argc > 4 ? atoll(argv[2]) : 0;
    const int n = argc > 4 ? atoi(argv[3]) : 0;
    if (bytes < 1 || n < 1 || n > THREADS_MAX) {
        fprintf(stderr, "usage: startup FILE BYTES THREADS CMD [ARG ...]\n");
        return 2;
    }
    const double reading = time_read(argv[1], bytes, n), first = time_first_byte(argv + 4);
    if (reading < 0) fprintf(stderr, "startup: cannot read %lld bytes of %s\n", bytes, argv[1]);
    if (first < 0) fprintf(stderr, "startup: %s printed nothing or failed\n", argv[4]);
    if (reading < 0 || first < 0) return 1;
    printf("%.1f %.1f\n", reading, first);
    return 0;
}
