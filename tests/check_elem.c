/* Compares every elementwise and attention kernel of every tier with the reference, bit by bit.
 *
 *     check_elem [--bench] [--filter TEXT] [--seed N] [--list]
 *
 * Inputs come in the regimes of check.h and one of special values; sizes cross the lane borders;
 * every output lies between guards that start right behind its last element.  With --bench it
 * prints time, bandwidth or FLOP rate, and the ratio to the reference, instead of comparing. */
#include "tests/check.h"

#include "moe/compute/elem.h"

enum { SPECIAL = CHECK_REGIME_N, REGIME_N = CHECK_REGIME_N + 1 };

static const char *regime_name(int g)
{
    return g == SPECIAL ? "special" : check_regime_name((enum check_regime)g);
}

/* check_fill, or a mixture with infinities, NaN, denormals and the edges of exp. */
static void fill(int g, float *x, size_t n, struct rng *r)
{
    static const uint32_t bits[] = {
        0x7f800000u, 0xff800000u, 0x7fc00000u, 0xffc12345u, 0x7f812345u, 0x00000001u, 0x807fffffu,
        0x00800000u, 0x7f7fffffu, 0xff7fffffu, 0x80000000u, 0x42b17217u, 0x42b17218u, 0xc2aeac4fu,
        0xc2aeac50u, 0xc2cff1b5u, 0x3f800000u, 0x477fefffu, 0x477ff000u, 0x33000000u, 0x33000001u};
    if (g != SPECIAL) {
        check_fill((enum check_regime)g, x, n, r);
        return;
    }
    /* Half of the fills have only few special values, so that not everything becomes NaN. */
    const uint32_t rate = rng_below(r, 2) ? 3 : 61;
    for (size_t i = 0; i < n; i++)
        x[i] = rng_below(r, rate) ? rng_range(r, -100.0f, 100.0f)
                                  : f32_from_bits(bits[rng_below(r, sizeof bits / sizeof *bits)]);
}

struct job {
    struct check_opts *o;
    const struct elem_kernels *ref, *k;
    const char *tier;
    struct rng rng;
    /* Attention, whose reference is slow: all tiers beside one run of it. */
    const struct elem_kernels *all[CPU_TIER_N];
    const char *name[CPU_TIER_N];
    int n_all;
};

static const int sizes[] = {1, 2, 3, 7, 8, 9, 15, 16, 17, 24, 31, 33, 64, 100, 127, 500, 4096};
enum { N_SIZES = sizeof sizes / sizeof *sizes, SLOTS_MAX = 9 };

/* ---- float rows ------------------------------------------------------------------------- */

enum row_op { RMS_NORM, RMS_NORM_ONES, ADD, SWIGLU, SWIGLU_GATE, SWIGLU_UP, SOFTMAX, COMBINE,
              ROPE_NEOX, ROPE_NORM, EXP, ROW_OP_N };

static const char *const row_names[ROW_OP_N] = {
    "rms_norm", "rms_norm_ones", "add", "swiglu", "swiglu_in_gate", "swiglu_in_up", "softmax",
    "combine", "rope_neox", "rope_norm", "exp"};

struct row_args {
    int n, n_slots;
    float *a, *b, *y;          /* [n], inputs and output */
    const float *w;            /* [SLOTS_MAX] */
    const float *x[SLOTS_MAX]; /* [n] each */
};

static void row_call(const struct elem_kernels *k, enum row_op op, const struct row_args *t)
{
    switch (op) {
    case RMS_NORM: k->rms_norm(t->n, t->a, t->b, 1e-6f, t->y); break;
    case RMS_NORM_ONES: k->rms_norm(t->n, t->y, NULL, 1e-5f, t->y); break;
    case ADD: k->add(t->n, t->a, t->y); break;
    case SWIGLU: k->swiglu(t->n, t->a, t->b, t->y); break;
    case SWIGLU_GATE: k->swiglu(t->n, t->y, t->b, t->y); break;
    case SWIGLU_UP: k->swiglu(t->n, t->a, t->y, t->y); break;
    case SOFTMAX: k->softmax(t->n, t->y); break;
    case COMBINE: k->combine(t->n, t->n_slots, t->w, t->x, t->y); break;
    case ROPE_NEOX: k->rope_neox(t->n & ~1, t->a, t->y); break;
    case ROPE_NORM: k->rope_norm(t->n & ~1, t->a, t->y); break;
    case EXP: k->exp(t->n, t->a, t->y); break;
    default: break;
    }
}

static void row_check_one(struct job *j, enum row_op op, int n, int regime)
{
    struct rng *r = &j->rng;
    const size_t bytes = (size_t)n * sizeof(float);
    struct check_buf a = check_canary_alloc(bytes), b = check_canary_alloc(bytes);
    struct check_buf y0 = check_canary_alloc(bytes), y1 = check_canary_alloc(bytes);
    struct check_buf xs[SLOTS_MAX];
    float w[SLOTS_MAX];
    struct row_args t = {.n = n, .n_slots = (int)rng_below(r, SLOTS_MAX + 1), .w = w};
    t.a = a.data;
    t.b = b.data;
    fill(regime, a.data, (size_t)n, r);
    fill(regime, b.data, (size_t)n, r);
    fill(regime, y0.data, (size_t)n, r);
    memcpy(y1.data, y0.data, bytes);
    for (int s = 0; s < SLOTS_MAX; s++) {
        xs[s] = check_canary_alloc(bytes);
        fill(regime, xs[s].data, (size_t)n, r);
        fill(regime, &w[s], 1, r);
        t.x[s] = xs[s].data;
    }
    char what[96];
    snprintf(what, sizeof what, "%s n=%d slots=%d %s", j->tier, n, t.n_slots, regime_name(regime));
    t.y = y0.data;
    row_call(j->ref, op, &t);
    t.y = y1.data;
    row_call(j->k, op, &t);
    check_same_f32(j->o, row_names[op], what, y0.data, y1.data, (size_t)n);
    check_same_canary(j->o, row_names[op], what, &y0);
    check_same_canary(j->o, row_names[op], what, &y1);
    for (int s = 0; s < SLOTS_MAX; s++) check_canary_free(&xs[s]);
    check_canary_free(&a);
    check_canary_free(&b);
    check_canary_free(&y0);
    check_canary_free(&y1);
}

static void row_check(struct job *j, enum row_op op)
{
    for (int i = 0; i < N_SIZES; i++)
        for (int g = 0; g < REGIME_N; g++)
            for (int rep = 0; rep < (g == SPECIAL ? 4 : 1); rep++)
                row_check_one(j, op, sizes[i], g);
}

/* exp on a dense walk through all bit patterns. */
static void exp_walk(struct job *j)
{
    enum { N = 1 << 18, STEP = 16384 - 3 };
    float *x = malloc(N * sizeof *x), *y0 = malloc(N * sizeof *y0), *y1 = malloc(N * sizeof *y1);
    if (!x || !y0 || !y1) abort();
    const uint32_t off = rng_below(&j->rng, STEP);
    for (uint32_t i = 0; i < N; i++) x[i] = f32_from_bits(i * STEP + off);
    j->ref->exp(N, x, y0);
    j->k->exp(N, x, y1);
    check_same_f32(j->o, "exp", j->tier, y0, y1, N);
    free(x);
    free(y0);
    free(y1);
}

/* ---- KV --------------------------------------------------------------------------------- */

static const char *const put_names[] = {"kv_put_f16", "kv_put_q8_0"};
static const char *const attn_names[] = {"attn_f16", "attn_q8_0", "attn_latent_f16",
                                         "attn_latent_q8_0"};

typedef void attn_fun(int dk, int dv, int n_q, float scale, int n_rows, const struct attn_row *r);
static attn_fun *attn_of(const struct elem_kernels *k, enum kv_type type, int latent)
{
    return latent ? k->attn_latent[type] : k->attn[type];
}

static void put_check(struct job *j, enum kv_type type)
{
    static const int shapes[][2] = {{32, 32},   {64, 64},  {128, 128},
                                    {192, 128}, {96, 256}, {16, 48}};
    struct rng *r = &j->rng;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const int dk = shapes[i][0], dv = shapes[i][1];
        if (type == KV_Q8_0 && (dk % 32 || dv % 32)) continue;
        const size_t bytes = attn_head_bytes(type, dk, dv);
        struct check_buf p0 = check_canary_alloc(bytes), p1 = check_canary_alloc(bytes);
        struct check_buf kb = check_canary_alloc((size_t)dk * 4);
        struct check_buf vb = check_canary_alloc((size_t)dv * 4);
        for (int g = 0; g < REGIME_N; g++) {
            char what[96];
            snprintf(what, sizeof what, "%s dk=%d dv=%d %s", j->tier, dk, dv, regime_name(g));
            for (int rep = 0; rep < 8; rep++) {
                const int pos = rep == 0 ? 0 : rep == 1 ? 63 : (int)rng_below(r, KV_PAGE);
                fill(g, kb.data, (size_t)dk, r);
                fill(g, vb.data, (size_t)dv, r);
                j->ref->kv_put[type](dk, dv, kb.data, vb.data, p0.data, pos);
                j->k->kv_put[type](dk, dv, kb.data, vb.data, p1.data, pos);
            }
            check_same_bytes(j->o, put_names[type], what, p0.data, p1.data, bytes);
            check_same_canary(j->o, put_names[type], what, &p1);
        }
        check_canary_free(&p0);
        check_canary_free(&p1);
        check_canary_free(&kb);
        check_canary_free(&vb);
    }
}

enum { ROWS_MAX = 70 };

/* How the rows of a call look at the pages. */
enum rows_kind {
    ROWS_ONE,     /* decode: one row */
    ROWS_PREFILL, /* rising `last`, all from 0 */
    ROWS_WINDOW,  /* rising first and last */
    ROWS_BATCH,   /* one row each of several sessions */
    ROWS_RANDOM,  /* anything */
    ROWS_KIND_N,
};

struct attn_case {
    int dk, dv, n_q, n_rows, n_pages, n_kv;
    enum rows_kind kind;
    int regime;
    int latent; /* V is the beginning of K */
};

/* Fills n_kv caches; bytes no kv_put wrote stay random, NaN halves among them. */
static void attn_pages(struct job *j, enum kv_type type, const struct attn_case *c, char *kv,
                       size_t stride, int n_pos)
{
    float k[576], v[512];
    check_fill_bytes(kv, stride * (size_t)c->n_pages * (size_t)c->n_kv, &j->rng);
    for (int s = 0; s < c->n_kv; s++) {
        for (int p = 0; p < n_pos; p++) {
            fill(c->regime, k, (size_t)c->dk, &j->rng);
            fill(c->regime, v, (size_t)c->dv, &j->rng);
            char *page = kv + stride * (size_t)(s * c->n_pages + p / KV_PAGE);
            j->ref->kv_put[type](c->dk, c->latent ? 0 : c->dv, k, v, page, p % KV_PAGE);
        }
    }
}

static void attn_check_one(struct job *j, enum kv_type type, const struct attn_case *c)
{
    struct rng *r = &j->rng;
    const size_t stride = attn_head_bytes(type, c->dk, c->latent ? 0 : c->dv) + 128;
    const int n_pos = c->n_pages * KV_PAGE - (int)rng_below(r, KV_PAGE);
    const size_t n_q = (size_t)c->n_q * (size_t)c->n_rows * (size_t)c->dk;
    const size_t n_o = (size_t)c->n_q * (size_t)c->n_rows * (size_t)c->dv;
    struct check_buf kv = check_canary_alloc(stride * (size_t)c->n_pages * (size_t)c->n_kv);
    struct check_buf q = check_canary_alloc(n_q * 4);
    struct check_buf o0 = check_canary_alloc(n_o * 4), o1 = check_canary_alloc(n_o * 4);
    attn_pages(j, type, c, kv.data, stride, n_pos);
    fill(c->regime, q.data, n_q, r);
    struct attn_row rows[ROWS_MAX];
    for (int i = 0; i < c->n_rows; i++) {
        int first = 0, last = n_pos - 1, s = 0;
        if (c->kind == ROWS_PREFILL || c->kind == ROWS_WINDOW)
            last = n_pos - c->n_rows + i < 0 ? 0 : n_pos - c->n_rows + i;
        if (c->kind == ROWS_WINDOW) first = last - 75 < 0 ? 0 : last - 75;
        if (c->kind == ROWS_BATCH || c->kind == ROWS_RANDOM) {
            s = c->kind == ROWS_BATCH ? i % c->n_kv : (int)rng_below(r, (uint32_t)c->n_kv);
            last = (int)rng_below(r, (uint32_t)n_pos);
        }
        if (c->kind == ROWS_RANDOM) first = (int)rng_below(r, (uint32_t)last + 1);
        rows[i] = (struct attn_row){
            .q = (float *)q.data + (size_t)i * (size_t)(c->n_q * c->dk),
            .out = (float *)o0.data + (size_t)i * (size_t)(c->n_q * c->dv),
            .kv = (char *)kv.data + stride * (size_t)(s * c->n_pages),
            .page_stride = stride,
            .first = first,
            .last = last,
        };
    }
    const float scale = c->regime == CHECK_LARGE ? 1e-7f : 0.125f;
    attn_of(j->ref, type, c->latent)(c->dk, c->dv, c->n_q, scale, c->n_rows, rows);
    for (int i = 0; i < c->n_rows; i++)
        rows[i].out = (float *)o1.data + (size_t)i * (size_t)(c->n_q * c->dv);
    for (int t = 0; t < j->n_all; t++) {
        memset(o1.data, 0xa5, n_o * 4);
        attn_of(j->all[t], type, c->latent)(c->dk, c->dv, c->n_q, scale, c->n_rows, rows);
        char what[128];
        snprintf(what, sizeof what, "%s dk=%d dv=%d n_q=%d rows=%d kind=%d pos=%d %s", j->name[t],
                 c->dk, c->dv, c->n_q, c->n_rows, c->kind, n_pos, regime_name(c->regime));
        const char *name = attn_names[(int)type + 2 * c->latent];
        check_same_f32(j->o, name, what, o0.data, o1.data, n_o);
        check_same_canary(j->o, name, what, &o1);
        check_same_canary(j->o, name, what, &kv);
    }
    check_canary_free(&kv);
    check_canary_free(&q);
    check_canary_free(&o0);
    check_canary_free(&o1);
}

static void attn_check(struct job *j, enum kv_type type, int latent)
{
    static const int both[][8][2] = {{{32, 32},  {64, 64},  {128, 128}, {192, 128},
                                      {160, 96}, {48, 112}, {16, 16},   {32, 256}},
                                     {{32, 32},  {64, 32},  {128, 128}, {576, 512},
                                      {160, 96}, {48, 32},  {16, 16},   {96, 80}}};
    const int(*shapes)[2] = both[latent];
    const size_t n_shapes = 8;
    /* Every number of query heads up to 9, one row: all sizes of the inner kernels. */
    for (int n_q = 1; n_q <= 9; n_q++)
        for (size_t i = 0; i < n_shapes; i++) {
            const int dk = shapes[i][0], dv = shapes[i][1];
            struct attn_case c = {dk, dv, n_q, 1, 2, 1, ROWS_ONE, CHECK_UNIFORM, latent};
            if (type == KV_Q8_0 && (c.dk % 32 || c.dv % 32)) continue;
            attn_check_one(j, type, &c);
        }
    for (int i = 0; i < 150 / CHECK_ONE_IN; i++) {
        const uint32_t s = rng_below(&j->rng, (uint32_t)n_shapes);
        struct attn_case c = {
            .latent = latent,
            .dk = shapes[s][0],
            .dv = shapes[s][1],
            .n_q = 1 + (int)rng_below(&j->rng, 8),
            .n_rows = 1 + (int)rng_below(&j->rng, i % 8 ? 10 : ROWS_MAX),
            .n_pages = 1 + (int)rng_below(&j->rng, 4),
            .n_kv = 1 + (int)rng_below(&j->rng, 3),
            .kind = (enum rows_kind)(i % ROWS_KIND_N),
            .regime = i % 3 ? CHECK_UNIFORM : (int)rng_below(&j->rng, REGIME_N),
        };
        if (c.kind == ROWS_ONE) c.n_rows = 1;
        /* Many wide rows: the reference alone would take seconds under a sanitizer. */
        if (CHECK_ONE_IN > 1 && c.n_rows * (c.dk + c.dv) > 10000) c.n_rows = 1 + i % 10;
        if (type == KV_Q8_0 && (c.dk % 32 || c.dv % 32)) continue;
        attn_check_one(j, type, &c);
    }
}

/* ---- bench ------------------------------------------------------------------------------ */

struct bench_arg {
    const struct elem_kernels *k;
    enum row_op op;
    struct row_args row;
    enum kv_type type;
    int dk, dv, n_q, n_rows, n_heads, head, latent;
    char *kv;
    size_t head_bytes; /* stride from one head's first page to the next head's */
    struct attn_row *rows;
    float *k_in, *v_in;
};

static void bench_row(void *arg)
{
    struct bench_arg *b = arg;
    row_call(b->k, b->op, &b->row);
}

static void bench_put(void *arg)
{
    struct bench_arg *b = arg;
    for (int p = 0; p < KV_PAGE; p++)
        b->k->kv_put[b->type](b->dk, b->dv, b->k_in, b->v_in, b->kv, p);
}

/* One head per call, round robin, so that what a call reads was not read by the one before. */
static void bench_attn(void *arg)
{
    struct bench_arg *b = arg;
    b->head = (b->head + 1) % b->n_heads;
    for (int i = 0; i < b->n_rows; i++) b->rows[i].kv = b->kv + b->head_bytes * (size_t)b->head;
    attn_of(b->k, b->type, b->latent)(b->dk, b->dv, b->n_q, 0.088f, b->n_rows, b->rows);
}

/* The reference is timed once: it is slow, and only the ratio's size matters. */
static double bench_time(int is_ref, void (*fn)(void *), struct bench_arg *b)
{
    if (!is_ref) return check_bench(fn, b, 0.2);
    double t0 = check_now();
    fn(b);
    return (check_now() - t0) * 1e9;
}

static void bench_print(const char *name, const char *what, const char *tier, double ns,
                        double bytes, double flop, double ref_ns)
{
    printf("%-16s %-28s %-7s %12.0f ns", name, what, tier, ns);
    if (bytes > 0) printf(" %8.2f GB/s", bytes / ns);
    if (flop > 0) printf(" %8.2f GFLOP/s", flop / ns);
    printf("  %6.1fx\n", ref_ns / ns);
    fflush(stdout);
}

static void bench_rows(struct check_opts *o)
{
    enum { N = 4096 };
    static float a[N], b[N], y[N], w[SLOTS_MAX], x[SLOTS_MAX][N];
    struct rng r;
    rng_seed(&r, o->seed);
    check_fill(CHECK_UNIFORM, w, SLOTS_MAX, &r);
    for (int op = 0; op < ROW_OP_N; op++) {
        /* In place the values would wander off into subnormals from call to call. */
        if (op == SWIGLU_GATE || op == SWIGLU_UP || !check_wanted(o, row_names[op])) continue;
        double ref_ns = 0;
        for (int t = 0; t <= (int)cpu_tier_best(); t++) {
            struct bench_arg g = {.k = elem_kernels((enum cpu_tier)t), .op = (enum row_op)op};
            g.row = (struct row_args){.n = N, .n_slots = 8, .a = a, .b = b, .y = y, .w = w};
            if (op == ROPE_NEOX || op == ROPE_NORM) g.row.n = 128;
            check_fill(CHECK_UNIFORM, a, N, &r);
            check_fill(CHECK_UNIFORM, b, N, &r);
            check_fill(CHECK_UNIFORM, y, N, &r);
            for (int s = 0; s < SLOTS_MAX; s++) g.row.x[s] = x[s];
            const double ns = bench_time(t == 0, bench_row, &g);
            if (!t) ref_ns = ns;
            const double n = (double)g.row.n;
            const double streams = op == COMBINE ? 9 : op == SOFTMAX || op == EXP ? 2 : 3;
            char what[32];
            snprintf(what, sizeof what, "n=%d", g.row.n);
            bench_print(row_names[op], what, cpu_tier_name((enum cpu_tier)t), ns,
                        n * streams * 4, 0, ref_ns);
        }
    }
}

struct attn_bench {
    const char *what;
    int dk, dv, n_q, n_rows, n_pos, n_heads;
    int latent;
};

static void bench_attn_case(struct check_opts *o, enum kv_type type, const struct attn_bench *c)
{
    const size_t head = attn_head_bytes(type, c->dk, c->latent ? 0 : c->dv);
    const int n_pages = (c->n_pos + KV_PAGE - 1) / KV_PAGE;
    /* Pages of one head lie side by side; heads follow one another. */
    struct bench_arg b = {.type = type, .dk = c->dk, .dv = c->dv, .n_q = c->n_q,
                          .n_rows = c->n_rows, .n_heads = c->n_heads, .latent = c->latent,
                          .head_bytes = head * (size_t)n_pages};
    b.kv = check_huge_alloc(b.head_bytes * (size_t)c->n_heads);
    float *q = check_huge_alloc((size_t)c->n_rows * (size_t)(c->n_q * c->dk) * 4);
    float *out = check_huge_alloc((size_t)c->n_rows * (size_t)(c->n_q * c->dv) * 4);
    b.rows = check_huge_alloc((size_t)c->n_rows * sizeof *b.rows);
    struct rng r;
    rng_seed(&r, o->seed);
    check_fill(CHECK_UNIFORM, q, (size_t)c->n_rows * (size_t)(c->n_q * c->dk), &r);
    float k[576], v[512];
    for (int h = 0; h < c->n_heads; h++)
        for (int p = 0; p < c->n_pos; p++) {
            if (h || p > 256) {
                /* Values do not matter to the time; touching the pages does. */
                memcpy(k, q, sizeof(float) * (size_t)c->dk);
                memcpy(v, q, sizeof(float) * (size_t)c->dv);
            } else {
                check_fill(CHECK_UNIFORM, k, (size_t)c->dk, &r);
                check_fill(CHECK_UNIFORM, v, (size_t)c->dv, &r);
            }
            char *page = b.kv + b.head_bytes * (size_t)h + head * (size_t)(p / KV_PAGE);
            elem_kernels(cpu_tier_best())->kv_put[type](c->dk, c->latent ? 0 : c->dv, k, v, page,
                                                        p % KV_PAGE);
        }
    double seen = 0, ref_ns = 0;
    for (int i = 0; i < c->n_rows; i++) {
        const int last = c->n_pos - c->n_rows + i;
        b.rows[i] = (struct attn_row){.q = q + (size_t)i * (size_t)(c->n_q * c->dk),
                                      .out = out + (size_t)i * (size_t)(c->n_q * c->dv),
                                      .page_stride = head, .last = last};
        seen += last + 1;
    }
    for (int t = 0; t <= (int)cpu_tier_best(); t++) {
        b.k = elem_kernels((enum cpu_tier)t);
        const double ns = bench_time(t == 0, bench_attn, &b);
        if (!t) ref_ns = ns;
        bench_print(attn_names[(int)type + 2 * c->latent], c->what,
                    cpu_tier_name((enum cpu_tier)t), ns, c->n_rows == 1 ? (double)b.head_bytes : 0,
                    seen * c->n_q * 2.0 * (c->dk + c->dv), ref_ns);
    }
}

static void bench_kv(struct check_opts *o)
{
    /* Calls stay under 3 ms, so that on a busy machine some of them are not interrupted. */
    static const struct attn_bench cases[] = {
        {"decode q1 1024 L2", 128, 128, 1, 1, 1024, 1, 0},
        {"decode q4 1024 L2", 128, 128, 4, 1, 1024, 1, 0},
        {"decode q8 1024 L2", 128, 128, 8, 1, 1024, 1, 0},
        {"decode q1 4096 memory", 128, 128, 1, 1, 4096, 64, 0},
        {"decode q4 4096 memory", 128, 128, 4, 1, 4096, 64, 0},
        {"decode q8 4096 memory", 128, 128, 8, 1, 4096, 64, 0},
        {"decode d64 q4 4096 memory", 64, 64, 4, 1, 4096, 128, 0},
        {"prefill 256 q4 d128", 128, 128, 4, 256, 256, 1, 0},
        {"prefill 32 q4 d128 at 2048", 128, 128, 4, 32, 2048, 1, 0},
        {"prefill 32 q8 d64 at 2048", 64, 64, 8, 32, 2048, 1, 0},
        {"prefill 128 q1 d256 at 1024", 256, 256, 1, 128, 1024, 1, 0},
    };
    static const struct attn_bench latent[] = {
        {"decode q16 1024", 576, 512, 16, 1, 1024, 1, 1},
        {"decode q128 1024", 576, 512, 128, 1, 1024, 1, 1},
        {"prefill 16 q16 at 512", 576, 512, 16, 16, 512, 1, 1},
    };
    for (int type = 0; type < 2; type++) {
        if (check_wanted(o, put_names[type])) {
            static float in[256];
            struct rng r;
            rng_seed(&r, o->seed);
            check_fill(CHECK_UNIFORM, in, 256, &r);
            double ref_ns = 0;
            for (int t = 0; t <= (int)cpu_tier_best(); t++) {
                struct bench_arg b = {.k = elem_kernels((enum cpu_tier)t), .dk = 128, .dv = 128,
                                      .type = (enum kv_type)type, .k_in = in, .v_in = in + 128};
                b.kv = check_huge_alloc(attn_head_bytes(b.type, 128, 128));
                const double ns = bench_time(t == 0, bench_put, &b) / KV_PAGE;
                if (!t) ref_ns = ns;
                bench_print(put_names[type], "128 + 128", cpu_tier_name((enum cpu_tier)t), ns, 1024,
                            0, ref_ns);
            }
        }
        if (check_wanted(o, attn_names[type]))
            for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
                bench_attn_case(o, (enum kv_type)type, &cases[i]);
        if (check_wanted(o, attn_names[type + 2]))
            for (size_t i = 0; i < sizeof latent / sizeof *latent; i++)
                bench_attn_case(o, (enum kv_type)type, &latent[i]);
    }
}

int main(int argc, char **argv)
{
    struct check_opts o;
    if (!check_parse(&o, argc, argv)) return 2;
    if (o.list) {
        for (int op = 0; op < ROW_OP_N; op++) check_wanted(&o, row_names[op]);
        for (int type = 0; type < 2; type++) check_wanted(&o, put_names[type]);
        for (int type = 0; type < 4; type++) check_wanted(&o, attn_names[type]);
        return 0;
    }
    if (o.bench) {
        bench_rows(&o);
        bench_kv(&o);
        return 0;
    }
    struct job all = {.o = &o, .ref = elem_kernels(CPU_REF)};
    rng_seed(&all.rng, o.seed);
    /* The reference against itself is the check of the checker: it must pass as well. */
    for (int t = 0; t <= (int)cpu_tier_best(); t++) {
        struct job j = {.o = &o, .ref = elem_kernels(CPU_REF), .k = elem_kernels((enum cpu_tier)t),
                        .tier = cpu_tier_name((enum cpu_tier)t)};
        if (t == CPU_REF && cpu_tier_best() != CPU_REF) continue;
        if (t > CPU_REF && j.k == elem_kernels((enum cpu_tier)(t - 1))) continue; /* none of its own */
        all.name[all.n_all] = j.tier;
        all.all[all.n_all++] = j.k;
        rng_seed(&j.rng, o.seed);
        for (int op = 0; op < ROW_OP_N; op++)
            if (check_wanted(&o, row_names[op])) row_check(&j, (enum row_op)op);
        if (check_wanted(&o, "exp")) exp_walk(&j);
        for (int type = 0; type < 2; type++)
            if (check_wanted(&o, put_names[type])) put_check(&j, (enum kv_type)type);
    }
    for (int type = 0; type < 2; type++)
        for (int latent = 0; latent < 2; latent++)
            if (check_wanted(&o, attn_names[type + 2 * latent]))
                attn_check(&all, (enum kv_type)type, latent);
    return check_finish(&o);
}
