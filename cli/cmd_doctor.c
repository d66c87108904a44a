/* tessera doctor: this machine, what it measures, what is slow and why.  -o writes the machine file
 * that plans can be made for.  Changes nothing. */
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "moe/base/cpu.h"
#include "moe/base/machine.h"
#include "moe/base/mem.h"
#include "moe/base/osfile.h"
#include "moe/base/rng.h"
#include "moe/base/thread.h"
#include "quant/mm.h"

struct doctor {
    struct machine m;
    int threads;
    bool direct;        /* the disk was read past the page cache, or that is not known */
    bool fresh;         /* --fresh: measure though there are measurements */
    char kept[1024];    /* the file of measurements, "" = none can be kept */
    bool was_kept;      /* they are from there */
    char disk[32];      /* the disk of the model, "" = not known */
    const char *model;
};

/* ---- integer products ---- */

enum { DOT_COLS = 1024, DOT_ROWS = 16 };

/* Q8_0 products of one tile with n_rows rows for a tenth of a second: 1e9 multiply-adds / s. */
static double time_dot(const struct mm_kernels *k, const void *tile, int n_rows,
                       const void *const *x, float *const *y)
{
    double start = os_seconds(), t = 0;
    double n = 0;
    while (t < 0.1) {
        for (int i = 0; i < 64; i++)
            k->mm[QTYPE_Q8_0](DOT_COLS, 1, tile, n_rows, x, y);
        n += 64.0 * n_rows * DOT_COLS * TILE_ROWS;
        t = os_seconds() - start;
    }
    return n / t / 1e9;
}

static void *aligned(size_t bytes)
{
    void *p = NULL;
    bytes = (bytes + 63) / 64 * 64;
    if (posix_memalign(&p, 64, bytes)) return NULL;
    memset(p, 0, bytes);
    return p;
}

/* Fills dot_q8 and dot_q8_1; leaves 0 when there is no memory or no kernel. */
static void measure_dot(struct doctor *d)
{
    const struct mm_kernels *k = mm_kernels(cpu_tier_best());
    size_t one = act_bytes(ACT_Q8_32, DOT_COLS);
    unsigned char *tile = aligned(tile_bytes(QTYPE_Q8_0, DOT_COLS));
    unsigned char *act = aligned(one * DOT_ROWS);
    float *out = aligned(sizeof(float) * DOT_ROWS * TILE_ROWS);
    float *in = aligned(sizeof(float) * DOT_COLS);
    if (tile && act && out && in && k->mm[QTYPE_Q8_0] && k->act[ACT_Q8_32]) {
        const void *x[DOT_ROWS];
        float *y[DOT_ROWS];
        struct rng r;
        rng_seed(&r, 1);
        for (int i = 0; i < DOT_COLS; i++) in[i] = rng_range(&r, -1, 1);
        for (int i = 0; i < DOT_ROWS; i++) {
            x[i] = act + one * (size_t)i;
            y[i] = out + TILE_ROWS * i;
            k->act[ACT_Q8_32](DOT_COLS, in, act + one * (size_t)i);
        }
        d->m.dot_q8 = time_dot(k, tile, DOT_ROWS, x, y);
        d->m.dot_q8_1 = time_dot(k, tile, 1, x, y);
    }
    free(tile);
    free(act);
    free(out);
    free(in);
}

/* ---- products of one row with weights in memory ---- */

enum { TYPE_COLS = 2048, TYPE_TASK = 1 << 20, TYPE_FIRST = 8 << 20, TYPE_PASSES = 2 };
static const double TYPE_SECONDS = 0.1;

struct type_job {
    void (*mm)(int n_cols, int n_tiles, const void *w, int n_rows, const void *const *x,
               float *const *y);
    const unsigned char *data;
    const void *x;
    size_t tile;
    int per_task, n_tiles;
    float *out; /* [workers][per_task * TILE_ROWS] */
};

static void type_task(void *arg, int task, int worker)
{
    const struct type_job *j = arg;
    const int from = task * j->per_task;
    const int n = j->n_tiles - from < j->per_task ? j->n_tiles - from : j->per_task;
    float *y = j->out + (size_t)worker * (size_t)(j->per_task * TILE_ROWS);
    j->mm(TYPE_COLS, n, j->data + (size_t)from * j->tile, 1, &j->x, &y);
}

/* GB/s of weights of a type, the best of some passes over `bytes`. */
static double time_type(struct pool *pool, const struct qtype_info *q, const unsigned char *data,
                        uint64_t bytes, unsigned char *act, const float *in, float *out)
{
    const struct mm_kernels *k = mm_kernels(cpu_tier_best());
    struct type_job j = {.mm = k->mm[q->id], .data = data, .x = act, .out = out,
                         .tile = tile_bytes(q->id, TYPE_COLS)};
    double best = 0;
    j.n_tiles = (int)(bytes / j.tile);
    j.per_task = TYPE_TASK / (int)j.tile > 1 ? TYPE_TASK / (int)j.tile : 1;
    k->act[q->act](TYPE_COLS, in, act);
    const int all = j.n_tiles, few = (int)(TYPE_FIRST / j.tile);
    for (int pass = 0; pass <= TYPE_PASSES; pass++) {
        /* The first pass only tells how much can be read in a while. */
        const double most = pass ? best * 1e9 * TYPE_SECONDS / (double)j.tile : few;
        j.n_tiles = most < all ? (int)most : all;
        if (j.n_tiles < j.per_task) j.n_tiles = j.per_task < all ? j.per_task : all;
        if (pass == 1) best = 0;
        const double start = os_seconds();
        pool_run(pool, type_task, &j, (j.n_tiles + j.per_task - 1) / j.per_task);
        const double gb_s = (double)j.tile * j.n_tiles / (os_seconds() - start) / 1e9;
        if (gb_s > best) best = gb_s;
    }
    return best;
}

static void region_task(void *arg, int task, int worker)
{
    (void)arg;
    (void)task;
    (void)worker;
}

/* Fills type[] and region; leaves what cannot be measured for want of memory. */
static void measure_types(struct doctor *d, uint64_t bytes)
{
    enum { REGIONS = 20000 };
    const struct mm_kernels *k = mm_kernels(cpu_tier_best());
    struct machine *m = &d->m;
    struct pool *pool = NULL;
    struct region data = {0};
    struct ledger all;
    ledger_init(&all, UINT64_MAX);
    unsigned char *act = aligned(act_bytes(ACT_F32, TYPE_COLS) + 65536);
    float *in = aligned(sizeof(float) * TYPE_COLS);
    float *out = aligned((size_t)d->threads * TYPE_TASK);
    if (!act || !in || !out || pool_open(d->threads, &pool, NULL) ||
        region_reserve(&data, &all, MEM_WEIGHTS, bytes, NULL) || region_commit(&data, bytes, NULL))
        goto done;
    /* Every byte the same: scales near one in all formats, and no denormals to slow the sums. */
    memset(data.base, 0x3c, bytes);
    for (int i = 0; i < TYPE_COLS; i++) in[i] = (float)(i % 17) / 17 - 0.5f;
    const struct qtype_info *q;
    m->n_types = 0;
    for (int i = 0; (q = qtype_at(i)) && m->n_types < MACHINE_TYPES && !cli_interrupted(); i++) {
        if (!k->mm[q->id] || !k->act[q->act]) continue;
        struct machine_type *t = &m->type[m->n_types++];
        (void)snprintf(t->name, sizeof t->name, "%s", q->name);
        t->read = time_type(pool, q, data.base, bytes, act, in, out);
    }
    const double start = os_seconds();
    for (int i = 0; i < REGIONS; i++) pool_run(pool, region_task, NULL, 2 * d->threads);
    m->region = 1e6 * (os_seconds() - start) / REGIONS;
done:
    region_release(&data);
    pool_close(pool);
    free(act);
    free(in);
    free(out);
}

/* ---- measuring ---- */

enum { PACK_COLS = 256, PACK_MAX = 4 << 20, PACK_THREADS = 8 };

/* Large enough to be memory and not cache, small enough for a small machine. */
static uint64_t ram_bytes(const struct machine *m)
{
    uint64_t want = (uint64_t)256 << 20, cache = m->l3_bytes * (uint64_t)(m->n_l3 ? m->n_l3 : 1);
    uint64_t room = m->cgroup_headroom < m->ram_available ? m->cgroup_headroom : m->ram_available;
    if (want < 4 * cache) want = 4 * cache;
    if (want > (uint64_t)2 << 30) want = (uint64_t)2 << 30;
    return want > room / 4 ? room / 4 : want;
}

/* Whether the file of an earlier run answers what is asked for now; then it is taken over. */
static bool take_kept(struct doctor *d)
{
    struct machine old;
    struct err ignored;
    err_clear(&ignored); /* a damaged file is measured anew */
    if (d->fresh || !d->kept[0] || machine_read(&old, d->kept, &ignored)) return false;
    if (old.ram_threads != d->threads || !(old.ram_read_n > 0) || !old.n_types) return false;
    if (d->model && !(old.disk_random > 0)) return false;
    struct machine *m = &d->m;
    m->ram_read_1 = old.ram_read_1;
    m->ram_read_n = old.ram_read_n;
    m->ram_threads = old.ram_threads;
    m->disk_read = old.disk_read;
    m->disk_random = old.disk_random;
    m->disk_small = old.disk_small;
    m->disk_wait = old.disk_wait;
    m->dot_q8 = old.dot_q8;
    m->dot_q8_1 = old.dot_q8_1;
    m->region = old.region;
    m->n_types = old.n_types;
    memcpy(m->type, old.type, sizeof m->type);
    d->direct = true;
    d->was_kept = true;
    return true;
}

struct packer {
    const struct mm_kernels *kernels;
    char *tiles; /* PACK_MAX for each of PACK_THREADS */
};

/* A block becomes tiles, as weights do; the types differ little in that. */
static void pack_block(void *arg, int thread, const void *block, size_t bytes)
{
    const struct packer *p = arg;
    const size_t row = qtype_bytes(QTYPE_Q8_0, PACK_COLS), tile = TILE_ROWS * row;
    char *to = p->tiles + (size_t)thread * PACK_MAX;
    for (size_t at = 0; at + tile <= bytes && at + tile <= PACK_MAX; at += tile)
        tile_pack(p->kernels, QTYPE_Q8_0, PACK_COLS, TILE_ROWS, (const char *)block + at, row, to + at);
}

static enum status measure_disk(struct doctor *d, struct err *err)
{
    struct packer p = {mm_kernels(cpu_tier_best()), aligned((size_t)PACK_MAX * PACK_THREADS)};
    const struct machine_arrival a = {pack_block, &p};
    const enum status s = machine_measure_disk(d->model, d->threads, p.tiles ? &a : NULL, &d->m,
                                               &d->direct, err);
    free(p.tiles);
    return s;
}

static enum status measure(struct doctor *d, struct err *err)
{
    struct machine *m = &d->m;
    struct osfile f;
    if (d->model) { /* what was measured before says nothing about a file that is not there */
        const enum status s = osfile_open(&f, d->model, OSFILE_BUFFERED, NULL, err);
        if (s) return s;
        osfile_close(&f);
    }
    if (!machine_cache(d->model, true, d->kept, sizeof d->kept)) d->kept[0] = 0;
    if (d->model) machine_disk_of(m, d->model, d->disk);
    if (take_kept(d)) return OK;
    fprintf(stderr, "tessera: measuring memory and products ...\n");
    m->ram_threads = d->threads;
    enum status s = machine_measure_ram(1, ram_bytes(m), &m->ram_read_1, err);
    if (!s) s = machine_measure_ram(d->threads, ram_bytes(m), &m->ram_read_n, err);
    if (s) return s;
    measure_dot(d);
    measure_types(d, ram_bytes(m));
    if (d->model && !cli_interrupted()) {
        fprintf(stderr, "tessera: measuring the disk of %s ...\n", d->model);
        s = measure_disk(d, err);
        if (s) return s;
    }
    struct err why;
    err_clear(&why);
    if (!cli_interrupted() && d->kept[0] && machine_write(m, d->kept, &why))
        cli_warn("the measurements are not kept: %s", why.msg);
    return OK;
}

/* ---- the report ---- */

static const char *bytes_or(uint64_t n, const char *none, char buf[24])
{
    return n == MACHINE_NONE ? none : cli_bytes(n, buf);
}

static void print_cpu(const struct machine *m)
{
    char a[24], b[24], c[24];
    printf("CPU            %s\n", m->cpu);
    printf("cores          %d (%d usable by this process), %d hardware threads, %d package%s\n",
           m->cores, m->cores_usable, m->threads, m->packages, m->packages == 1 ? "" : "s");
    printf("instructions   %s\n", m->tier);
    printf("caches         L1d %s and L2 %s per core", cli_bytes(m->l1d_bytes, a),
           cli_bytes(m->l2_bytes, b));
    if (m->l3_bytes) printf(", L3 %d x %s", m->n_l3, cli_bytes(m->l3_bytes, c));
    printf("\nNUMA nodes     %d\n", m->numa_nodes);
}

static void print_memory(const struct machine *m)
{
    char a[24], b[24], c[24];
    printf("RAM            %s, %s available\n", bytes_or(m->ram_bytes, "not known", a),
           bytes_or(m->ram_available, "not known", b));
    if (m->cgroup_limit == MACHINE_NONE)
        printf("control group  no memory limit\n");
    else
        printf("control group  limit %s, %s used, %s left\n", cli_bytes(m->cgroup_limit, a),
               cli_bytes(m->cgroup_used, b), bytes_or(m->cgroup_headroom, "?", c));
    printf("huge pages     %s\n", m->huge_pages);
}

static void print_devices(const struct doctor *d)
{
    char a[24];
    for (int i = 0; i < d->m.n_disks; i++) {
        const struct machine_disk *k = &d->m.disk[i];
        printf("disk           %s, %s, %s%s\n", k->name, cli_bytes(k->bytes, a),
               k->rotational ? "rotating (or virtual)" : "solid state",
               !strcmp(k->name, d->disk) ? ", holds the model" : "");
    }
    printf("GPU            %s\n", d->m.gpu);
}

static void print_measured(const struct doctor *d)
{
    const struct machine *m = &d->m;
    if (d->was_kept) printf("\nmeasured before, kept in %s (--fresh measures again)\n", d->kept);
    else printf("\nmeasured\n");
    printf("memory read    %.1f GB/s with 1 thread, %.1f GB/s with %d\n", m->ram_read_1,
           m->ram_read_n, m->ram_threads);
    if (m->dot_q8 > 0)
        printf("Q8_0 products  %.1f G multiply-adds/s per core for one row, %.1f for 16 rows\n",
               m->dot_q8_1, m->dot_q8);
    for (int i = 0; i < m->n_types; i++)
        printf("%s%s %.1f%s", i % 6 ? "  " : i ? "\n               " : "weights read   ", m->type[i].name,
               m->type[i].read, i + 1 < m->n_types ? "" : " GB/s, one row\n");
    if (m->disk_read > 0)
        printf("disk read      %.2f GB/s in order, %.2f in 1 MiB pieces at random, %.2f in 64 KiB pieces, "
               "%.0f us for one%s\n", m->disk_read, m->disk_random, m->disk_small, m->disk_wait,
               d->direct ? "" : " (through the page cache)");
    else if (d->model)
        printf("disk read      the file is too small to tell\n");
    else
        printf("disk read      not measured: -m F reads the disk of that model\n");
}

/* ---- what is slow and why ---- */

static void finding(int *n, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void finding(int *n, const char *fmt, ...)
{
    va_list ap;
    if (!(*n)++) printf("\nwhat is slow and why\n");
    va_start(ap, fmt);
    printf("- ");
    (void)vprintf(fmt, ap);
    printf("\n");
    va_end(ap);
}

static double load_average(void)
{
    double load = 0;
    FILE *f = fopen("/proc/loadavg", "re");
    if (!f) return 0;
    if (fscanf(f, "%lf", &load) != 1) load = 0;
    (void)fclose(f);
    return load;
}

static void find_cpu(const struct machine *m, int *n)
{
    if (!strcmp(m->tier, "ref"))
        finding(n, "Kernels run in plain C: this CPU has no AVX2, or TESSERA_CPU masks it.");
    if (m->cores_usable < m->cores && m->cpu_quota > 0 && m->cpu_quota < m->cores)
        finding(n, "The control group grants %.1f of %d cores; more threads would only be "
                   "throttled.", m->cpu_quota, m->cores);
    else if (m->cores_usable < m->cores)
        finding(n, "This process may use %d of %d cores (affinity mask).", m->cores_usable,
                m->cores);
    if (m->numa_nodes > 1)
        finding(n, "%d NUMA nodes: weights on another node are read more slowly; numactl "
                   "--interleave=all evens that out.", m->numa_nodes);
    double load = load_average();
    if (load > 0.75 * m->cores)
        finding(n, "Other work is running (load %.1f on %d cores): the numbers above are low.",
                load, m->cores);
}

static void find_memory(const struct machine *m, int *n)
{
    char a[24], b[24];
    if (!strcmp(m->huge_pages, "never"))
        finding(n, "Transparent huge pages are off: every 4 KiB of weights costs an address "
                   "lookup. As root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
    if (m->cgroup_limit < m->ram_bytes)
        finding(n, "The control group allows %s of the %s of RAM; --mem auto stays below that.",
                cli_bytes(m->cgroup_limit, a), cli_bytes(m->ram_bytes, b));
    if (m->ram_threads > 1 && m->ram_read_n < 1.3 * m->ram_read_1)
        finding(n, "%d threads read memory hardly faster than one: generating text, which reads "
                   "every active weight once per token, gains little from more threads.",
                m->ram_threads);
    double best = m->ram_read_n > m->ram_read_1 ? m->ram_read_n : m->ram_read_1;
    if (best > 0)
        finding(n, "Generating: at most %.0f tokens/s per GB of active weights, for memory gives "
                   "%.1f GB/s.", best, best);
}

static void find_disk(const struct doctor *d, int *n)
{
    const struct machine *m = &d->m;
    for (int i = 0; i < m->n_disks; i++) /* virtual disks also claim to rotate: believe the speed */
        if (m->disk[i].rotational && !strcmp(m->disk[i].name, d->disk) && m->disk_random < 0.15)
            finding(n, "The model is on a rotating disk: experts that are not in memory take tens "
                       "of milliseconds each.");
    if (m->disk_random > 0 && m->ram_read_n > 0)
        finding(n, "A weight that is not in memory costs %.0f times one that is (%.2f GB/s).",
                m->ram_read_n / m->disk_random, m->disk_random);
    if (d->model && m->disk_read > 0 && !d->direct)
        finding(n, "The model's file system refuses direct reads: loading passes through the page "
                   "cache, which Tessera drops behind itself.");
    if (strcmp(m->gpu, "none"))
        finding(n, "This version does not use the GPU.");
}

/* ---- the command ---- */

static int examine(struct doctor *d, const char *out)
{
    struct err err;
    int n = 0;
    err_clear(&err);
    cli_catch_interrupts();
    enum status s = machine_detect(&d->m, NULL, &err);
    if (s) return cli_fail(&err);
    if (d->threads <= 0) d->threads = d->m.cores_usable;
    if (measure(d, &err)) return cli_fail(&err);
    if (cli_interrupted()) return CLI_INTERRUPTED;
    print_cpu(&d->m);
    print_memory(&d->m);
    print_devices(d);
    print_measured(d);
    find_cpu(&d->m, &n);
    find_memory(&d->m, &n);
    find_disk(d, &n);
    return out && machine_write(&d->m, out, &err) ? cli_fail(&err) : CLI_OK;
}

int cmd_doctor(int argc, char **argv)
{
    struct doctor *d = calloc(1, sizeof *d);
    static const struct cli_flag flags[] = {
        {"-m --model", "FILE", "measure the disk that holds this file", CLI_STR,
         offsetof(struct doctor, model), 0, 0},
        {"--fresh", NULL, "measure again what an earlier run has measured and kept", CLI_TRUE,
         offsetof(struct doctor, fresh), 0, 0},
        {0}};
    struct cli_args a = cli_defaults();
    struct cli_spec spec = {.name = "doctor", .groups = CLI_THREADS | CLI_OUTPUT, .own = flags,
                            .own_base = d};
    if (!d) return cli_fail(&(struct err){.code = ERR_MEMORY});
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc == CLI_GO_ON) {
        d->threads = a.threads;
        rc = examine(d, a.output);
    }
    free(d);
    return rc;
}
