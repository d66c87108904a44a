/* A stack resized in the middle of one long generation, measured from outside.
 *
 *   build/release/bench/stack_resize STACK [-n RESIZES] [-c CONTEXT] [-t THREADS] [-s SEED]
 *
 * A worker generates in a memory control group whose limit is the budget: raised before the budget grows,
 * lowered as soon as a smaller one is in force.  Of three resizes one is to the smallest budget that the
 * engine accepts, one to that which holds the whole stack, one in between.  After each: the group's peak
 * charge (page cache and kernel memory included) and the peak resident set since then are not above the
 * budget, and nothing was killed; the keys and values are saved, and another process, started afresh,
 * is given them and the same depth of every matrix, and must compute the same logits, bit for bit.
 *
 * Exit code: 0 all held, 1 something did not, 77 no group can be made here. */
#define _GNU_SOURCE
#include <errno.h>
#include <sys/wait.h>

#include "bench/group.h"
#include "moe/base/rng.h"
#include "moe/load/stackfile.h"
#include "moe/tessera.h"

enum { TOKENS = 2, PROMPT = 16, MIB = 1 << 20 };

static struct tessera_options options;
static int n_resizes = 200;
static uint64_t seed = 1;
static char dir[64] = "/tmp/tessera-resize-XXXXXX", kv[96];
static struct gguf *file;
static struct stackfile stack;
static int n_mats, n_vocab;

/* What the parent asks for: another budget, or tokens. */
struct order {
    uint64_t budget; /* 0 = tokens */
};

/* Behind it, for tokens: float logits[n_vocab], int8_t depth[n_mats]. */
struct answer {
    int ok, n_loaded;
    int32_t token;  /* that the logits follow, at the position after what was saved */
    char msg[200];
};

static void die(const char *what)
{
    fprintf(stderr, "stack_resize: %s\n", what);
    exit(1);
}

static void all_of(int fd, void *p, size_t n, int to)
{
    for (size_t k = 0; k < n;) {
        const ssize_t m = to ? write(fd, (char *)p + k, n - k) : read(fd, (char *)p + k, n - k);
        if (m < 0 && errno == EINTR) continue;
        if (m <= 0) die("the other process is gone");
        k += (size_t)m;
    }
}

/* The name of the i-th matrix of the stack, and which one of its tensor it is. */
static int matrix_at(int i, char *name, size_t cap)
{
    int t = 0;
    while (i >= stack.tensor[t].n_mats) i -= stack.tensor[t++].n_mats;
    (void)snprintf(name, cap, "%.*s", (int)stack.tensor[t].base->name.n, stack.tensor[t].base->name.s);
    return i;
}

static const float *step(tessera_engine *e, tessera_session *s, const int32_t *id, int n)
{
    struct err err;
    struct tessera_input in = {s, id, n, TESSERA_LOGITS_LAST};
    if (tessera_step(e, &in, 1, &err)) die(err.msg);
    return tessera_logits(e, 0, n - 1);
}

static int32_t likeliest(const float *logits)
{
    int best = 0;
    for (int i = 1; i < n_vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

/* ---- the worker ---- */

/* Resizes as told; the smallest budget that works and the smallest that holds all come first. */
static void find_sizes(tessera_engine *e, uint64_t size[2])
{
    struct err err;
    const uint64_t total = tessera_memory(e).total / MIB + 1;
    uint64_t lo = 1, hi = total + 8;
    while (tessera_resize(e, hi * MIB, &err) || tessera_stack(e).n_loaded < tessera_stack(e).n_units) hi += 4;
    for (size[1] = hi; size[1] > 1; size[1]--)
        if (tessera_resize(e, (size[1] - 1) * MIB, &err) ||
            tessera_stack(e).n_loaded < tessera_stack(e).n_units) break;
    while (lo < hi) {
        const uint64_t mid = (lo + hi) / 2;
        if (tessera_resize(e, mid * MIB, &err)) lo = mid + 1;
        else hi = mid;
    }
    size[0] = lo;
}

static void worker(int in, int out)
{
    struct err err;
    struct order o;
    tessera_engine *e;
    tessera_session *s;
    uint64_t size[2];
    int32_t prompt[PROMPT], next;
    all_of(in, &o, sizeof o, 0); /* until it is in the group */
    if (tessera_open(&options, &e, &err) || tessera_session_open(e, 0, &s, &err)) die(err.msg);
    for (int i = 0; i < PROMPT; i++) prompt[i] = 20 + 3 * i;
    next = likeliest(step(e, s, prompt, PROMPT));
    find_sizes(e, size);
    all_of(out, size, sizeof size, 1);
    int8_t *depth = malloc((size_t)n_mats);
    if (!depth) die("no memory");
    for (;;) {
        struct answer a = {.ok = 1};
        all_of(in, &o, sizeof o, 0);
        if (o.budget == UINT64_MAX) _exit(0);
        if (o.budget) {
            a.ok = !tessera_resize(e, o.budget, &err);
            if (!a.ok) (void)snprintf(a.msg, sizeof a.msg, "%.199s", err.msg);
            a.n_loaded = tessera_stack(e).n_loaded;
            all_of(out, &a, sizeof a, 1);
            continue;
        }
        for (int i = 1; i < TOKENS; i++) next = likeliest(step(e, s, &next, 1));
        if (tessera_session_save(s, kv, &err)) die(err.msg);
        a.token = next;
        float *logits = (float *)(uintptr_t)step(e, s, &next, 1);
        next = likeliest(logits);
        for (int i = 0; i < n_mats; i++) {
            char name[128];
            const int m = matrix_at(i, name, sizeof name);
            depth[i] = (int8_t)tessera_stack_depth(e, name, m);
        }
        all_of(out, &a, sizeof a, 1);
        all_of(out, logits, sizeof *logits * (size_t)n_vocab, 1);
        all_of(out, depth, (size_t)n_mats, 1);
    }
}

/* ---- a fresh start ---- */

/* In a process of its own: 0 the same logits, 1 others. */
static int fresh(int32_t token, const float *logits, const int8_t *depth)
{
    const pid_t pid = fork();
    if (pid < 0) die("cannot fork");
    if (!pid) {
        struct err err;
        tessera_engine *e;
        tessera_session *s;
        if (tessera_open(&options, &e, &err) || tessera_session_open(e, 0, &s, &err)) die(err.msg);
        for (int i = 0; i < n_mats; i++) {
            char name[128];
            const int m = matrix_at(i, name, sizeof name);
            if (tessera_stack_limit(e, name, m, depth[i], &err)) die(err.msg);
        }
        if (tessera_session_load(s, kv, &err)) die(err.msg);
        _exit(memcmp(step(e, s, &token, 1), logits, sizeof *logits * (size_t)n_vocab) != 0);
    }
    int status = 1;
    (void)waitpid(pid, &status, 0);
    return !WIFEXITED(status) || WEXITSTATUS(status);
}

/* ---- the parent ---- */

static void set_limit(const struct group *g, uint64_t n)
{
    char text[32];
    (void)snprintf(text, sizeof text, "%llu", (unsigned long long)n);
    if (group_put(g->path, g->v2 ? "memory.max" : "memory.limit_in_bytes", text))
        die("the group's limit cannot be lowered to the budget: more than that is in use");
}

/* From now on: the group's peak where it can be forgotten (v1, new kernels), and the process's. */
static void forget_peaks(const struct group *g, pid_t pid)
{
    char path[64];
    (void)snprintf(path, sizeof path, "/proc/%d", (int)pid);
    (void)group_put(path, "clear_refs", "5");
    (void)group_put(g->path, g->v2 ? "memory.peak" : "memory.max_usage_in_bytes", g->v2 ? "reset" : "0");
}

static uint64_t peak_rss(pid_t pid)
{
    char path[64], line[128];
    unsigned long long kib = 0;
    (void)snprintf(path, sizeof path, "/proc/%d/status", (int)pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "VmHWM: %llu", &kib) == 1) break;
    if (f) (void)fclose(f);
    return kib * 1024;
}

static int run(const struct group *g, pid_t pid, int to, int from)
{
    struct order o = {0};
    uint64_t size[2], now = 0;
    struct rng r;
    int above = 0, other = 0, last = -1, changed = 0;
    double used = 0;
    all_of(to, &o, sizeof o, 1);
    all_of(from, size, sizeof size, 0);
    printf("%d resizes between %llu and %llu MiB\n", n_resizes, (unsigned long long)size[0],
           (unsigned long long)size[1]);
    float *logits = malloc(sizeof *logits * (size_t)n_vocab);
    int8_t *depth = malloc((size_t)n_mats);
    if (!logits || !depth) die("no memory");
    rng_seed(&r, seed);
    for (int i = 0; i < n_resizes; i++) {
        struct answer a;
        const uint64_t mib = i % 3 == 0 ? size[0] : i % 3 == 1 ? size[1]
                           : size[0] + rng_below(&r, (uint32_t)(size[1] - size[0] + 1));
        o.budget = mib * MIB;
        if (o.budget > now) set_limit(g, o.budget);
        all_of(to, &o, sizeof o, 1);
        all_of(from, &a, sizeof a, 0);
        if (!a.ok) die(a.msg);
        if (o.budget < now) set_limit(g, o.budget);
        now = o.budget;
        changed += a.n_loaded != last;
        last = a.n_loaded;
        forget_peaks(g, pid);
        o.budget = 0;
        all_of(to, &o, sizeof o, 1);
        all_of(from, &a, sizeof a, 0);
        all_of(from, logits, sizeof *logits * (size_t)n_vocab, 0);
        all_of(from, depth, (size_t)n_mats, 0);
        const uint64_t peak = group_get(g->path, g->v2 ? "memory.peak" : "memory.max_usage_in_bytes", NULL);
        const uint64_t rss = peak_rss(pid);
        if (peak > now || rss > now) {
            above++;
            printf("resize %d: %llu KiB charged, %llu resident, of %llu\n", i, (unsigned long long)peak / 1024,
                   (unsigned long long)rss / 1024, (unsigned long long)now / 1024);
        }
        if ((double)peak / (double)now > used) used = (double)peak / (double)now;
        if (fresh(a.token, logits, depth)) {
            other++;
            printf("resize %d: a fresh start computes other logits\n", i);
        }
    }
    o.budget = UINT64_MAX;
    all_of(to, &o, sizeof o, 1);
    const uint64_t killed = group_get(g->path, g->v2 ? "memory.events" : "memory.oom_control", "oom_kill");
    printf("%d changed what is loaded; above the budget: %d; killed: %llu; largest share of a budget: %.1f %%; "
           "logits unlike a fresh start's: %d\n", changed, above, (unsigned long long)killed, 100 * used, other);
    free(logits);
    free(depth);
    return above || other || killed || changed < n_resizes / 2;
}

static void parse(int argc, char **argv)
{
    if (argc < 2 || argc % 2) {
        fprintf(stderr, "usage: stack_resize STACK [-n RESIZES] [-c CONTEXT] [-t THREADS] [-s SEED]\n");
        exit(2);
    }
    options = tessera_defaults();
    options.model_path = argv[1];
    options.n_ctx = 512;
    options.n_ubatch = 32;
    options.n_threads = 2;
    options.mem_budget = UINT64_MAX;
    for (int i = 2; i < argc; i += 2) {
        const int v = atoi(argv[i + 1]);
        if (v < 1) die("numbers are at least 1");
        if (!strcmp(argv[i], "-n")) n_resizes = v;
        else if (!strcmp(argv[i], "-c")) options.n_ctx = v;
        else if (!strcmp(argv[i], "-t")) options.n_threads = v;
        else if (!strcmp(argv[i], "-s")) seed = (uint64_t)v;
        else die("-n, -c, -t or -s");
    }
    if (PROMPT + TOKENS * n_resizes > options.n_ctx) die("the context is too short for so many resizes");
}

int main(int argc, char **argv)
{
    struct group g;
    struct err err;
    int to[2], from[2];
    err_clear(&err);
    parse(argc, argv);
    if (gguf_open(options.model_path, NULL, &file, &err) || stackfile_open(&stack, file, &err)) die(err.msg);
    if (!stack.present) die("the file is no stack");
    for (int i = 0; i < stack.n_tensors; i++) n_mats += stack.tensor[i].n_mats;
    const struct gguf_tensor *embd = gguf_find_tensor(file, "token_embd.weight");
    n_vocab = embd ? (int)embd->dim[1] : 0;
    if (group_make(&g, 0)) {
        fprintf(stderr, "stack_resize: no control group for memory can be made here\n");
        return 77;
    }
    if (!mkdtemp(dir) || pipe(to) || pipe(from)) die("no folder or no pipe");
    (void)snprintf(kv, sizeof kv, "%s/kv.gguf", dir);
    const pid_t pid = fork();
    if (pid < 0) die("cannot fork");
    if (!pid) {
        (void)close(to[1]); /* so that it ends with its parent */
        (void)close(from[0]);
        worker(to[0], from[1]);
    }
    char text[32];
    (void)snprintf(text, sizeof text, "%d", (int)pid);
    (void)close(to[0]);
    (void)close(from[1]);
    if (group_put(g.path, "cgroup.procs", text)) die("the worker cannot be put into the group");
    const int bad = run(&g, pid, to[1], from[0]);
    (void)waitpid(pid, NULL, 0);
    (void)unlink(kv);
    (void)rmdir(dir);
    for (int i = 0; i < 50 && rmdir(g.path) && errno == EBUSY; i++) (void)usleep(10000);
    return bad;
}
