/* Checks the CUDA plugin against the CPU device, bit by bit, on random inputs: each op that it runs, and
 * whole layers, submitted to both on the same buffers, weights and KV pages.
 *
 *     check_cuda [--bench] [--filter TEXT] [--seed N] [--list]
 *
 * The same source runs on a GPU (`make cuda`: build/cuda/check_cuda) and, where CUDA's runtime and the
 * threads of the kernels are emulated, on any machine (tests/cuda_emu).  The first line says which.
 * Names look like "cuda.q4_k" and "cuda.attention".  Exit code 1 when anything differs. */
#include <math.h>
#include <ctype.h>

#include "moe/compute/cuda/kernels.h"
#include "moe/compute/dev.h"
#include "routing/route.h"
#include "tests/check_mm.h"

const struct dev_api *tessera_device(void);

static cudaStream_t stream;

static void must(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return;
    fprintf(stderr, "check_cuda: %s: %s\n", what, cudaGetErrorString(e));
    exit(1);
}

static void settle(void)
{
    must(cudaStreamSynchronize(stream), "a kernel");
}

static const char *name_of(const char *before, const char *type, char *buf, size_t n)
{
    int at = snprintf(buf, n, "%s", before);
    for (; *type && at + 1 < (int)n; type++) buf[at++] = (char)tolower((unsigned char)*type);
    buf[at] = 0;
    return buf;
}

/* ---- the two devices, and what both work on ---- */

/* The CPU works on `here`, the GPU on `card`, which has the same at the same distance; copies go through
 * `host`.  What nobody has written is UNTOUCHED. */
enum { ARENA = 20 << 20, UNTOUCHED = 0x5a };
static struct {
    char *here, *card, *host;
    size_t used;
} arena;
static struct dev *cpu, *gpu;
static const struct dev_api *api;

enum { BUFS = 40, WEIGHTS = 32, ROWS = 4200, SESSIONS = 3, SLOTS = 2, PAGES = 7, EXPERTS = 5, USED = 4,
       PARTS = 3, CROWD = 12, MIXED = 13, STACKS = 32 };

struct world {
    struct dev_buf buf[BUFS];
    struct {
        bool looked_at, acts; /* acts: prepared rows */
        enum act_kind kind;
        int n, n_heads;
    } is[BUFS];
    int n_bufs;
    struct dev_weight weight[WEIGHTS];
    int n_weights;
    struct stacked stack[STACKS]; /* stacked matrices as the CPU sees what lies there as the GPU does */
    int n_stacks;
    struct dev_row row[ROWS];
    int32_t some[ROWS], where[ROWS], pos[ROWS];
    struct dev_rows set[ROWS_MAX];
    char *kv[SESSIONS], *pages;
    size_t pages_bytes;
    int dk, dv;                   /* of the pages' heads */
    uint64_t kv_offset[SLOTS];
    int32_t end[SESSIONS];
    struct dev_route route;
    const void *expert[OP_IO][EXPERTS];
    int32_t ids[EXPERTS], first[EXPERTS + 1], pair[ROWS * USED], n_of[ROWS];
    float w[ROWS * USED];
    int part[PARTS + 1], n_parts; /* experts are computed in so many submissions */
    struct dev_bind bind;
};

static void *take(size_t bytes)
{
    char *p = arena.here + arena.used;
    bytes = (bytes + 63) / 64 * 64;
    if (bytes > ARENA - arena.used) {
        fputs("check_cuda: its memory is too small\n", stderr);
        exit(1);
    }
    arena.used += bytes;
    return memset(p, UNTOUCHED, bytes);
}

/* Rows of some sessions one after another.  Set ROWS_OUT has some of them, and ROWS_FIRST the same, which
 * have places of their own on its timelines. */
static struct world *new_world(int n_rows, struct rng *r)
{
    static struct world w;
    int32_t at[SESSIONS], n_some = 0;
    arena.used = 0;
    memset(&w, 0, sizeof w);
    for (int s = 0; s < SESSIONS; s++)
        at[s] = n_rows < KV_PAGE ? (int32_t)rng_below(r, (PAGES - 1) * KV_PAGE - 2) : 0;
    for (int i = 0; i < n_rows; i++) {
        const int s = i * SESSIONS / n_rows;
        w.row[i] = (struct dev_row){i, at[s]++, s};
        w.pos[i] = w.row[i].pos + 1;
        w.where[i] = -1;
        if (!rng_below(r, 3)) continue;
        w.where[i] = n_some;
        w.some[n_some++] = i;
    }
    for (int s = 0; s < SESSIONS; s++) w.end[s] = at[s] + 1;
    w.set[ROWS_ALL] = (struct dev_rows){.n = n_rows, .kv_base = w.kv};
    w.set[ROWS_OUT] = (struct dev_rows){.n = n_some, .row = w.some, .kv_base = w.kv};
    w.set[ROWS_FIRST] = (struct dev_rows){.n = n_some, .row = w.some, .where = w.where, .pos = w.pos,
                                          .kv_base = w.kv};
    w.n_parts = 1;
    w.bind = (struct dev_bind){.buf = w.buf, .weight = w.weight, .row = w.row, .set = w.set,
                               .n_rows = n_rows, .n_ctx = PAGES * KV_PAGE, .kv_offset = w.kv_offset,
                               .n_inputs = SESSIONS, .end = w.end};
    return &w;
}

static int new_buf(struct world *w, int set, int n, int width, size_t bytes)
{
    const size_t stride = (bytes + 63) / 64 * 64;
    if (w->n_bufs == BUFS) abort();
    w->buf[w->n_bufs] = (struct dev_buf){take(stride * (size_t)n), (uint32_t)stride, width, set};
    w->is[w->n_bufs].n = n;
    return w->n_bufs++;
}

/* Rows of floats, which may be looked at. */
static int floats(struct world *w, int set, int width, bool looked_at, int trial, struct rng *r)
{
    const int n = w->set[set].n, b = new_buf(w, set, n, width, 4 * (size_t)width);
    w->is[b].looked_at = looked_at;
    for (int i = 0; i < n; i++) fill_act(dev_buf_floats(&w->buf[b], i), (size_t)width, trial + i, r);
    return b;
}

/* Prepared rows of so many heads; trial < 0: nothing is in them, and they are looked at. */
static int acts(struct world *w, int set, enum act_kind kind, int width, int n_heads, int trial,
                struct rng *r)
{
    const int n = w->set[set].n, b = new_buf(w, set, n, width, act_bytes(kind, width) * (size_t)n_heads);
    w->is[b].acts = true;
    w->is[b].looked_at = trial < 0;
    w->is[b].kind = kind;
    w->is[b].n_heads = n_heads;
    float *x = need(malloc(4 * (size_t)width));
    for (int i = 0; i < n * n_heads && trial >= 0; i++) {
        fill_act(x, (size_t)width, trial + i, r);
        if (trial % 5 == 4) /* the largest sums there can be */
            for (int k = 0; k < width; k++) x[k] = i & 1 ? -1.0f : 1.0f;
        mm_kernels(CPU_REF)->act[kind](width, x, dev_buf_row(&w->buf[b], i / n_heads) +
                                                     act_bytes(kind, width) * (size_t)(i % n_heads));
    }
    free(x);
    return b;
}

static int new_weight(struct world *w, const void *data, enum qtype type, bool tiles, int n_cols, int n_rows)
{
    if (w->n_weights == WEIGHTS) abort();
    w->weight[w->n_weights] = (struct dev_weight){data, type, tiles, n_cols, n_rows};
    return w->n_weights++;
}

static int vector(struct world *w, int n, int trial, struct rng *r)
{
    float *p = take(4 * (size_t)n);
    fill_act(p, (size_t)n, trial, r);
    return new_weight(w, p, QTYPE_F32, false, n, 1);
}

static void *tiles_of(enum qtype type, int n_cols, int n_rows, int trial, struct rng *r)
{
    const size_t row = qtype_bytes(type, (uint64_t)n_cols), tile = tile_bytes(type, n_cols);
    const int tiles = (n_rows + TILE_ROWS - 1) / TILE_ROWS;
    uint8_t *rows = need(malloc(row * (size_t)n_rows));
    char *p = take(tile * (size_t)tiles);
    fill_weights(type, (enum weight_regime)(trial % W_REGIME_N), trial, rows, n_rows, n_cols, r);
    for (int k = 0; k < tiles; k++) {
        const int left = n_rows - TILE_ROWS * k;
        tile_pack(mm_kernels(CPU_REF), type, n_cols, left < TILE_ROWS ? left : TILE_ROWS,
                  rows + row * (size_t)(TILE_ROWS * k), row, p + tile * (size_t)k);
    }
    free(rows);
    return p;
}

/* A stack of any depth. */
static const struct stacked *stack_of(struct world *w, int n_cols, int n_rows, int trial, struct rng *r)
{
    const int depth = (int)rng_below(r, STACK_NESTED + 1), tiles = (n_rows + TILE_ROWS - 1) / TILE_ROWS;
    const size_t base = tile_bytes(QTYPE_NEST2, n_cols) * (size_t)tiles;
    const size_t plane = stack_level_bytes(QTYPE_NEST2, 0, n_cols, n_rows, 1);
    const size_t bytes = base + plane * (size_t)depth;
    uint8_t *p = need(malloc(bytes));
    for (size_t i = 0; i < bytes; i++)
        p[i] = (uint8_t)(trial % 5 == 1 ? 0 : trial % 5 == 2 ? 0xff : rng_below(r, 256));
    for (size_t b = 0; b < base && trial % 5 != 3; b += TNEST2_BYTES) /* scales of any kind, or moderate ones */
        for (int i = 0; i < TILE_ROWS; i++) p[b + (size_t)i] = (uint8_t)(0x40 + rng_below(r, 0x30));
    struct stacked m = {.type = QTYPE_NEST2, .n_cols = n_cols, .n_rows = n_rows, .depth = depth, .base = p};
    for (int l = 1; l <= depth; l++) m.level[l] = p + base + plane * (size_t)(l - 1);
    char *to = take(dev_stacked_bytes(n_cols, n_rows, depth));
    dev_stacked_put(&m, to);
    free(p);
    if (w->n_stacks == STACKS) abort();
    w->stack[w->n_stacks] = dev_stacked_view(n_cols, n_rows, to);
    return &w->stack[w->n_stacks++];
}

static const void *matrix_of(struct world *w, enum qtype type, int n_cols, int n_rows, int trial, struct rng *r)
{
    return type == QTYPE_NEST2 ? stack_of(w, n_cols, n_rows, trial, r)
                               : (const void *)tiles_of(type, n_cols, n_rows, trial, r);
}

static int matrix(struct world *w, enum qtype type, int n_cols, int n_rows, int trial, struct rng *r)
{
    return new_weight(w, matrix_of(w, type, n_cols, n_rows, trial, r), type, true, n_cols, n_rows);
}

/* Pages of slots for so many KV heads, with anything in them. */
static void pages(struct world *w, enum kv_type type, int n_kv, int dk, int dv, struct rng *r)
{
    const size_t slot = attn_head_bytes(type, dk, dv) * (size_t)n_kv, page = slot * SLOTS + 64;
    w->pages_bytes = page * PAGES * SESSIONS;
    w->pages = take(w->pages_bytes);
    for (size_t i = 0; i + 2 <= w->pages_bytes; i += 2) put_half((uint8_t *)w->pages + i, moderate_half(r));
    for (int s = 0; s < SESSIONS; s++) w->kv[s] = w->pages + page * PAGES * (size_t)s;
    for (int s = 0; s < SLOTS; s++) w->kv_offset[s] = slot * (size_t)s;
    for (int s = 0; s < ROWS_MAX; s++) w->set[s].kv_page_bytes = page;
    w->bind.kv_type = type;
    w->dk = dk;
    w->dv = dv;
}

/* Trial 0 has weights as models have them; in some, rows have not all of their slots, and in
 * one nearly all of them go to one expert. */
static void route(struct world *w, enum qtype up, enum qtype down, int n_embd, int n_ff, int n_rows,
                  int trial, struct rng *r)
{

    int n = 0;
    for (int i = 0; i < n_rows; i++) w->n_of[i] = trial % 3 == 1 ? (int)rng_below(r, USED + 1) : USED;
    for (int e = 0; e < EXPERTS; e++) {
        w->first[e] = n;
        w->ids[e] = e;
        for (int i = 0; i < n_rows; i++)
            for (int s = 0; s < w->n_of[i]; s++)
                if (e == (trial == CROWD ? (i < EXPERTS && !s ? i : 2) : (i * (1 + trial % 4) + s) % EXPERTS))
                    w->pair[n++] = i * USED + s;
        for (int k = 0; k < OP_IO; k++)
            w->expert[k][e] = matrix_of(w, k < 2 ? up : down, k < 2 ? n_embd : n_ff, k < 2 ? n_ff : n_embd,
                                        trial ? trial + e + k : 0, r);
    }
    w->first[EXPERTS] = n;
    check_fill(CHECK_UNIFORM, w->w, (size_t)(n_rows * USED), r);
    w->route = (struct dev_route){
        .n_rows = n_rows, .n_used = USED, .n_active = EXPERTS, .n_pairs = n, .n_slots = n_rows * USED,
        .w = w->w, .n_of = trial % 3 == 1 ? w->n_of : NULL, .expert = w->ids, .first = w->first,
        .pair = w->pair, .gate = w->expert[0], .up = w->expert[1], .down = w->expert[2], .sum = true,
    };
    w->n_parts = 1 + trial % PARTS;
    for (int i = 0; i <= w->n_parts; i++) w->part[i] = EXPERTS * i / w->n_parts;
    w->bind.route = &w->route;
    w->bind.scratch = take(dev_experts_scratch(n, n_rows * USED, n_embd, n_ff,
                                               qtype_info((uint32_t)down)->act));
}

static struct op an_op(enum op_code code, int rows, int in, int out)
{
    struct op op = {.code = code, .rows = rows};
    for (int i = 0; i < OP_IO; i++) op.in[i] = op.out[i] = -1;
    for (int i = 0; i < OP_WEIGHTS; i++) op.weight[i] = -1;
    op.kv_slot = -1;
    op.in[0] = in;
    op.out[0] = out;
    return op;
}

/* ---- running ops on both ---- */

static void *there(const void *p) { return p ? arena.card + ((const char *)p - arena.here) : NULL; }

/* Of a matrix, which may be a stack. */
static const void *matrix_there(const struct world *w, const void *p)
{
    for (int i = 0; i < w->n_stacks; i++)
        if (p == &w->stack[i]) return there((const char *)w->stack[i].base - TNEST_HEAD);
    return there(p);
}

static void over(void *to, const void *from, size_t n)
{
    struct err e;
    err_clear(&e);
    if (api->wait(gpu, api->copy(gpu, to, from, n), 10, &e) == DEV_PASSED) return;
    fprintf(stderr, "check_cuda: a copy: %s\n", e.msg);
    exit(1);
}

/* The same for the GPU's memory. */
static struct world *world_there(const struct world *w)
{
    static struct world g;
    g = *w;
    for (int i = 0; i < g.n_bufs; i++) g.buf[i].base = there(g.buf[i].base);
    for (int i = 0; i < g.n_weights; i++) g.weight[i].data = matrix_there(w, g.weight[i].data);
    for (int i = 0; i < SESSIONS; i++) g.kv[i] = there(g.kv[i]);
    for (int i = 0; i < ROWS_MAX; i++) g.set[i].kv_base = g.kv;
    for (int k = 0; k < OP_IO; k++)
        for (int i = 0; i < EXPERTS; i++) g.expert[k][i] = matrix_there(w, g.expert[k][i]);
    g.bind.buf = g.buf;
    g.bind.weight = g.weight;
    g.bind.set = g.set;
    g.bind.scratch = there(g.bind.scratch);
    g.bind.route = &g.route;
    g.route.pair_out = there(g.route.pair_out);
    g.route.gate = g.expert[0];
    g.route.up = g.expert[1];
    g.route.down = g.expert[2];
    return &g;
}

static enum dev_state submit(const struct dev_api *to, struct dev *d, struct world *w, const struct op *ops,
                             int n, struct err *e)
{
    enum dev_state s = DEV_PASSED;
    const bool sum = w->route.sum;
    for (int p = 0; p < w->n_parts && s == DEV_PASSED; p++) {
        w->route.begin = w->part[p];
        w->route.end = w->part[p + 1];
        w->route.sum = sum && p + 1 == w->n_parts;
        s = to->wait(d, to->submit(d, ops, n, &w->bind), 10, e);
    }
    w->route.sum = sum;
    return s;
}

static size_t prepared_bytes(enum act_kind kind, int n) /* without what rounds them up */
{
    if (kind == ACT_F32) return 4 * (size_t)n;
    if (kind == ACT_Q8_256) return (size_t)n + (size_t)n / 256 * 4 + (size_t)n / 16 * 2 + (size_t)n / 32 * 2;
    return (size_t)n + (size_t)n / (kind == ACT_Q8_32 ? 32 : 64) * 8;
}

static void check_untouched(struct check_opts *o, const char *name, const char *what, const char *p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (p[i] != UNTOUCHED) {
            check_fail(o, name, what, "wrote outside its output");
            return;
        }
}

/* What the GPU has made of buffer b, against the CPU's. */
static void compare_buf(struct check_opts *o, const char *name, const char *what, const struct world *w, int b)
{
    const struct dev_buf *buf = &w->buf[b];
    const bool as = w->is[b].acts;
    const enum act_kind kind = as ? w->is[b].kind : ACT_F32;
    const size_t bytes = prepared_bytes(kind, buf->width);
    const size_t step = as && w->is[b].n_heads > 1 ? act_bytes(kind, buf->width) : buf->stride;
    for (int i = 0; i < w->is[b].n; i++)
        for (int h = 0; h < (as ? w->is[b].n_heads : 1); h++) {
            const char *want = dev_buf_row(buf, i) + step * (size_t)h;
            const char *got = arena.host + (want - arena.here);
            if (kind == ACT_F32)
                check_same_f32(o, name, what, (const float *)(const void *)want,
                               (const float *)(const void *)got, (size_t)buf->width);
            else check_same_bytes(o, name, what, want, got, bytes);
            check_untouched(o, name, what, got + bytes, step - bytes);
        }
}

/* Whether byte `at` of a session's pages belongs to a half. */
static bool is_half(const struct world *w, size_t at)
{
    const size_t head = attn_head_bytes(w->bind.kv_type, w->dk, w->dv), page = w->set[0].kv_page_bytes;
    const size_t k = (size_t)w->dk / 32 * KV_PAGE * 2, v = k + (size_t)w->dk * KV_PAGE;
    at = at % page % head;
    return w->bind.kv_type == KV_F16 || at < k || (at >= v && at < v + (size_t)w->dv / 32 * KV_PAGE * 2);
}

/* Which NaN a NaN is is no part of the arithmetic. */
static void compare_pages(struct check_opts *o, const char *name, const char *what, const struct world *w)
{
    char *got = arena.host + (w->pages - arena.here);
    for (size_t i = 0; i + 2 <= w->pages_bytes; i += 2) {
        uint16_t a, b;
        memcpy(&a, w->pages + i, 2);
        memcpy(&b, got + i, 2);
        if ((a & 0x7fffu) > 0x7c00u && (b & 0x7fffu) > 0x7c00u && is_half(w, i)) memcpy(got + i, &a, 2);
    }
    check_same_bytes(o, name, what, w->pages, got, w->pages_bytes);
}

static void run(struct check_opts *o, const char *name, const char *what, struct world *w,
                const struct op *ops, int n)
{
    struct err e;
    err_clear(&e);
    for (int i = 0; i < n; i++)
        if (!api->supports(gpu, &ops[i], w->weight)) check_fail(o, name, what, "it says that it cannot");
    memcpy(arena.host, arena.here, arena.used);
    over(arena.card, arena.host, arena.used);
    if (submit(api, gpu, world_there(w), ops, n, &e) != DEV_PASSED) {
        fprintf(stderr, "check_cuda: %s: %s\n", name, e.msg);
        exit(1);
    }
    over(arena.host, arena.card, arena.used);
    (void)submit(dev_cpu_api(), cpu, w, ops, n, NULL);
    for (int b = 0; b < w->n_bufs; b++)
        if (w->is[b].looked_at) compare_buf(o, name, what, w, b);
    if (w->pages) compare_pages(o, name, what, w);
}

/* ---- ops of one kind, in all shapes ---- */

static const int sets[] = {ROWS_ALL, ROWS_OUT, ROWS_FIRST, ROWS_ALL};
static const int units[] = {[ACT_F32] = 5, [ACT_Q8_32] = 32, [ACT_Q8_256] = 256, [ACT_Q8_64] = 64};

static struct op make_norm(struct world *w, enum op_code code, int trial, struct rng *r)
{
    static const int widths[] = {1, 15, 16, 17, 100, 256, 2048, 4100}, dims[] = {64, 7, 128, 16};
    const int set = sets[trial % 4];
    if (code == OP_RMS_NORM) {
        const int n = widths[trial % 8];
        struct op op = an_op(code, set, floats(w, set, n, false, trial, r), floats(w, set, n, true, 0, r));
        op.weight[0] = vector(w, n, trial / 2, r);
        op.p.head.eps = 1e-6f;
        return op;
    }
    const int heads = 1 + trial % 5, dim = dims[trial / 2 % 4];
    struct op op = an_op(code, set, -1, floats(w, set, heads * dim + trial % 3, true, trial, r));
    if (trial % 3) op.weight[0] = vector(w, dim, trial, r);
    op.p.head.n_heads = heads;
    op.p.head.dim = dim;
    op.p.head.eps = 1e-5f;
    return op;
}

static struct op make_prepare(struct world *w, enum op_code code, int trial, struct rng *r)
{
    static const int blocks[] = {1, 2, 3, 8, 9, 24};
    const enum act_kind kind = (enum act_kind)(trial % ACT_N);
    const int set = sets[trial / 3 % 4], heads = code == OP_HEAD_PREPARE ? 3 : 1;
    const int n = blocks[trial / ACT_N % 6] * units[kind], stride = n + trial / ACT_N % 4 * 3;
    struct op op = an_op(code, set, floats(w, set, stride * heads, false, trial, r),
                         acts(w, set, kind, n, heads, -1, r));
    op.p.prepare.kind = kind;
    op.p.prepare.n_heads = heads;
    op.p.prepare.dim = n;
    op.p.prepare.stride = stride;
    return op;
}

static struct op make_rope(struct world *w, enum op_code code, int trial, struct rng *r)
{
    static const int dims[] = {64, 128, 80};
    const int set = sets[trial % 4], heads = 1 + trial % 7, dim = dims[trial % 3], at = trial % 2 * 16;
    const int n_rot = trial % 5 == 4 ? 32 : dim - at;
    struct op op = an_op(code, set, -1, floats(w, set, heads * dim, true, trial, r));
    op.in[0] = op.out[0];
    op.in[1] = floats(w, set, n_rot, false, trial + 1, r);
    op.p.rope.n_heads = heads;
    op.p.rope.dim = dim;
    op.p.rope.at = at;
    op.p.rope.rope.n_rot = n_rot;
    op.p.rope.rope.neox = trial / 2 % 2;
    return op;
}

static struct op make_map(struct world *w, enum op_code code, int trial, struct rng *r)
{
    static const int widths[] = {1, 16, 100, 255, 256, 257, 1000};
    const int set = sets[trial % 4], n = widths[trial % 7];
    struct op op = an_op(code, set, -1, floats(w, set, n, true, trial, r));
    if (code == OP_ADD || code == OP_MUL || code == OP_GATE || code == OP_GLU)
        op.in[0] = floats(w, set, code == OP_GATE && trial % 3 == 0 ? 1 : n, false, trial / 2, r);
    if (code == OP_GLU) {
        op.in[1] = floats(w, set, n, false, trial / 3, r);
        op.p.glu.act = (enum glu_act)(trial % 4);
    }
    if (code == OP_SCALE || code == OP_SOFTCAP) op.p.scale.by = rng_range(r, 0.1f, 40.0f);
    if (code == OP_SCALE && trial % 2) op.weight[0] = vector(w, 1, trial, r);
    if (code == OP_ADD_BIAS || code == OP_FILL) {
        op.p.bias.at = n > 100 ? trial : 0;
        op.weight[0] = vector(w, code == OP_FILL ? n - op.p.bias.at : n + op.p.bias.at, trial, r);
    }
    return op;
}

static struct op make_select(struct world *w, enum op_code code, int trial, struct rng *r)
{
    static const int from[] = {ROWS_ALL, ROWS_ALL, ROWS_FIRST}, to[] = {ROWS_OUT, ROWS_FIRST, ROWS_FIRST};
    const int n = 1 + trial * 7;
    return an_op(code, to[trial % 3], floats(w, from[trial % 3], n, false, trial, r),
                 floats(w, to[trial % 3], n, true, 0, r));
}

static struct op make_copy_heads(struct world *w, enum op_code code, int trial, struct rng *r)
{
    const int set = sets[trial % 4], heads = 1 + trial % 4, dim = trial % 3 ? 33 : 300;
    struct op op = an_op(code, set, floats(w, set, heads * (dim + 7) + 4, false, trial, r),
                         floats(w, set, heads * (dim + 5) + 8, true, trial, r));
    op.p.copy = (struct copy_heads){heads, dim, 4, trial % 2 ? dim + 7 : 0, 8, dim + 5};
    return op;
}

static struct op make_head_matmul(struct world *w, enum op_code code, int trial, struct rng *r)
{
    static const enum qtype types[] = {QTYPE_Q8_0, QTYPE_F16, QTYPE_Q4_K, QTYPE_F32, QTYPE_Q5_0};
    const enum qtype type = types[trial % 5];
    const int set = sets[trial % 4], heads = 1 + trial % 3, per = TILE_ROWS * (1 + trial / 2 % 3);
    const int n = qtype_info((uint32_t)type)->block * 3, stride = per + trial % 2 * 5;
    struct op op = an_op(code, set, acts(w, set, qtype_info((uint32_t)type)->act, n, heads, trial, r),
                         floats(w, set, heads * stride, true, 0, r));
    op.weight[0] = matrix(w, type, n, per * heads, trial, r);
    op.p.heads.n_heads = heads;
    op.p.heads.stride = stride;
    return op;
}

/* Heads as models have them, padded ones and latent ones among them. */
static struct op make_kv(struct world *w, enum op_code code, int trial, struct rng *r)
{
    static const struct { int dim, dim_v, dk, dv, latent; } h[] = {
        {64, 64, 64, 64, 0}, {128, 96, 128, 96, 0}, {20, 20, 32, 32, 0},
        {160, 128, 160, 128, 1}, {40, 64, 64, 64, 0}, {256, 256, 256, 256, 0}, {576, 512, 576, 512, 1},
    };
    static const int kv_rows[] = {ROWS_ALL, ROWS_ALL, ROWS_FIRST}, windows[] = {0, 0, 5, 70, 1000};
    static const int sees[] = {SEES_BEFORE, SEES_BEFORE, SEES_ALL, 8}, per[] = {1, 4, 3, 8};
    const int i = trial % 7, set = trial % 3 == 2 ? ROWS_FIRST : sets[trial % 4];
    const int n_kv = h[i].latent ? 1 : 1 + trial % 3, n_q = n_kv * per[trial / 2 % 4];
    pages(w, trial % 2 ? KV_Q8_0 : KV_F16, n_kv, h[i].dk, h[i].latent ? 0 : h[i].dv, r);
    struct op op = an_op(code, set, -1, -1);
    op.kv_slot = trial / 3 % SLOTS;
    op.kv_rows = kv_rows[trial % 3];
    op.p.attn.n_kv_heads = n_kv;
    op.p.attn.n_q_heads = n_q;
    op.p.attn.dim = h[i].dim;
    op.p.attn.dim_v = h[i].dim_v;
    op.p.attn.dk = h[i].dk;
    op.p.attn.dv = h[i].dv;
    op.p.attn.latent = h[i].latent;
    if (code == OP_KV_PUT) {
        op.in[0] = floats(w, set, n_kv * h[i].dim, false, trial, r);
        op.in[1] = h[i].latent ? op.in[0] : floats(w, set, n_kv * h[i].dim_v, false, trial + 1, r);
        return op;
    }
    op.p.attn.window = windows[trial % 5];
    op.p.attn.sees = sees[trial % 4];
    op.p.attn.scale = trial % 6 == 5 ? 30.0f : 0.01f;
    op.in[0] = floats(w, set, n_q * h[i].dim, false, trial / 2, r);
    op.out[0] = floats(w, set, n_q * h[i].dim_v, true, 0, r);
    if (trial % 3 == 1) op.weight[0] = vector(w, n_q, trial / 3, r);
    return op;
}

typedef struct op make_fn(struct world *w, enum op_code code, int trial, struct rng *r);

static void check_op(struct check_opts *o, enum op_code code, int n, make_fn *make)
{
    static const int rows[] = {1, 9, 2, 17, 40};
    char name[64], what[64];
    struct rng r;
    if (!check_wanted(o, name_of("cuda.", op_name(code), name, sizeof name))) return;
    rng_seed(&r, o->seed ^ (uint64_t)code << 40);
    for (int trial = 0; trial < n; trial++) {
        if (trial % CHECK_ONE_IN) continue;
        struct world *w = new_world(rows[trial % (code == OP_ATTENTION ? 4 : 5)], &r);
        const struct op op = make(w, code, trial, &r);
        snprintf(what, sizeof what, "trial %d", trial);
        run(o, name, what, w, &op, 1);
    }
}

/* More rows than one launch takes, more lists than one copy, and more copies than go round. */
static void check_many_rows(struct check_opts *o)
{
    static struct op op[500];
    const int n = sizeof op / sizeof *op;
    struct rng r;
    if (!check_wanted(o, "cuda.many-rows")) return;
    rng_seed(&r, o->seed + 5);
    struct world *w = new_world(ROWS, &r);
    const int all = floats(w, ROWS_ALL, 5, false, 0, &r), some = floats(w, ROWS_FIRST, 5, false, 1, &r);
    const int x = floats(w, ROWS_OUT, 5, true, 0, &r), sum = floats(w, ROWS_OUT, 5, true, 0, &r);
    for (int i = 0; i < n; i += 2) {
        const bool from_all = rng_below(&r, 2);
        op[i] = an_op(OP_SELECT, from_all ? ROWS_OUT : ROWS_FIRST, from_all ? all : some, x);
        op[i + 1] = an_op(OP_ADD, ROWS_OUT, x, sum);
    }
    run(o, "cuda.many-rows", "", w, op, n);
}

/* What is read is uploaded again and again, and nobody waits in between. */
static void check_uploads(struct check_opts *o)
{
    enum { KINDS = 3 };
    struct rng r;
    if (!check_wanted(o, "cuda.uploads")) return;
    rng_seed(&r, o->seed + 7);
    struct world *w = new_world(40, &r);
    const int x = floats(w, ROWS_ALL, 1000, false, 0, &r), sum = floats(w, ROWS_ALL, 1000, true, 0, &r);
    const size_t bytes = (size_t)w->buf[x].stride * 40;
    const struct op op = an_op(OP_ADD, ROWS_ALL, x, sum);
    char *from[KINDS];
    memcpy(arena.host, arena.here, arena.used);
    for (int k = 0; k < KINDS; k++) {
        from[k] = arena.host + arena.used + bytes * (size_t)k;
        memcpy(from[k], arena.here, bytes);
        for (int i = 0; i < 1000; i++) ((float *)(void *)from[k])[i * 9] = rng_range(&r, -9, 9);
    }
    over(arena.card, arena.host, arena.used);
    for (int i = 0; i < 20; i++) {
        const char *next = from[rng_below(&r, KINDS)];
        (void)api->copy(gpu, there(w->buf[x].base), next, bytes);
        (void)api->submit(gpu, &op, 1, &world_there(w)->bind);
        memcpy(w->buf[x].base, next, bytes);
        (void)submit(dev_cpu_api(), cpu, w, &op, 1, NULL);
    }
    over(arena.host, arena.card, arena.used);
    compare_buf(o, "cuda.uploads", "", w, sum);
}

/* ---- products ---- */

/* Another type that wants its rows prepared in the same way, or the same. */
static enum qtype partner(enum qtype type, int n_cols)
{
    for (int i = 0; qtype_at(i); i++) {
        const struct qtype_info *t = qtype_at(i);
        if (t->id != type && gpu_has_product(t->id) && t->act == qtype_info((uint32_t)type)->act &&
            n_cols % t->block == 0)
            return t->id;
    }
    return type;
}

static void check_matmul(struct check_opts *o, enum qtype type, int n_cols, int n_out, int trial,
                         const char *name, struct rng *r)
{
    static const int rows[] = {1, 9, 3, 17, 8, 33, 64, 70, 25};
    const enum qtype types[] = {type, trial % 2 ? type : partner(type, n_cols), type};
    const int set = sets[trial % 4], n = n_cols > 1000 ? 1 : 1 + trial % OP_IO;
    struct world *w = new_world(rows[trial % (n_cols > 1000 ? 5 : 9)], r);
    char what[96];
    struct op op = an_op(OP_MATMUL, set, acts(w, set, qtype_info((uint32_t)type)->act, n_cols, 1, trial, r), -1);
    for (int i = 0; i < n; i++) {
        op.weight[i] = matrix(w, types[i], n_cols, n_out + 20 * i, trial + i, r);
        op.out[i] = floats(w, set, n_out + 20 * i, true, 0, r);
    }
    snprintf(what, sizeof what, "matmul columns %d rows %d trial %d", n_cols, n_out, trial);
    run(o, name, what, w, &op, 1);
}

/* Experts of any shape, with biases, all activations, in one submission or several, summed or not; of MIXED
 * down is of a type that shares blocks otherwise. */
static void check_experts(struct check_opts *o, enum qtype type, int n_rows, int trial, const char *name,
                          struct rng *r)
{
    const int block = qtype_info((uint32_t)type)->block, unit = trial == MIXED ? 32 : block == 1 ? 23 : block;
    const int n_embd = unit * (1 + trial % 2), n_ff = unit * (1 + trial / 2 % 2);
    const enum qtype down = trial == MIXED ? QTYPE_Q8_0 : trial % 2 ? type : partner(type, n_ff);
    struct world *w = new_world(n_rows, r);
    char what[96];
    struct op op = an_op(OP_EXPERTS, ROWS_ALL,
                         acts(w, ROWS_ALL, qtype_info((uint32_t)type)->act, n_embd, 1, trial, r),
                         floats(w, ROWS_ALL, n_embd, true, 0, r));
    route(w, type, down, n_embd, n_ff, n_rows, trial, r);
    op.p.moe.act = (enum glu_act)(trial % 4);
    for (int k = 0; k < OP_IO; k++) {
        op.weight[k] = new_weight(w, NULL, k < 2 ? type : down, true, k < 2 ? n_embd : n_ff, k < 2 ? n_ff : n_embd);
        if (trial % 4 == 1) op.weight[OP_IO + k] = vector(w, EXPERTS * (k < 2 ? n_ff : n_embd), k, r);
    }
    if (trial % 5 == 2) { /* rows of pairs, whoever sums them up */
        w->route.sum = false;
        const int b = new_buf(w, ROWS_ALL, w->route.n_pairs, n_embd, 4 * (size_t)n_embd);
        w->is[b].looked_at = true;
        w->route.pair_out = w->buf[b].base;
    }
    snprintf(what, sizeof what, "experts of %d and %d, %d rows, trial %d", n_embd, n_ff, n_rows, trial);
    run(o, name, what, w, &op, 1);
}

static void check_type(struct check_opts *o, enum qtype type)
{
    static const int outs[] = {1, 15, 16, 17, 48, 100};
    static const int blocks[] = {1, 2, 3, 8, 17};
    char name[64];
    struct rng r;
    if (!check_wanted(o, name_of("cuda.", qtype_info((uint32_t)type)->name, name, sizeof name))) return;
    rng_seed(&r, o->seed ^ (uint64_t)type << 32);
    const int unit = qtype_info((uint32_t)type)->block;
    for (int i = 0, trial = 0; i < 6; i++)
        for (int b = 0; b < 5; b++, trial++) {
            if ((trial + (int)type) % CHECK_ONE_IN) continue;
            int n = blocks[b] * unit;
            if (unit <= 64 && b == 4) n = 75 * unit; /* more pieces than shared memory holds at once */
            if (unit == 1) n = n * 11 + 1;
            check_matmul(o, type, n, outs[i], trial, name, &r);
        }
    for (int trial = 1; trial <= 10; trial++)
        if ((trial + (int)type) % CHECK_ONE_IN == 0)
            check_experts(o, type, trial % 3 ? 11 : 1 + trial % 2, trial, name, &r);
    if (CHECK_ONE_IN == 1) check_experts(o, type, 90, 8, name, &r); /* more pairs of an expert than share */
    if (type == QTYPE_F16 || type == QTYPE_MXFP4) { /* more pairs than a list has, and of one expert */
        check_experts(o, type, 1100, 0, name, &r);
        check_experts(o, type, 1100, CROWD, name, &r);
        if (type == QTYPE_F16) check_experts(o, type, 40, MIXED, name, &r);
    }
    /* Enough tiles for warps that share none, or few. */
    for (int trial = type == QTYPE_Q4_0 ? 0 : 2; trial < 3 && (type == QTYPE_Q4_0 || type == QTYPE_Q4_K); trial++)
        check_matmul(o, type, unit, TILE_ROWS * (2048 >> trial) + 5, 6 + trial * 9, name, &r);
}

/* ---- layers ---- */

/* norm, q k v, their norms, rope, attention, o, and experts, as a model has them: n layers. */
static int make_layers(struct world *w, struct op *op, int n, enum kv_type kv, int n_rows, int trial,
                       struct rng *r)
{
    enum { EMBD = 256, DIM = 64, N_KV = 2, N_Q = 4, FF = 256 };
    const enum qtype type = trial % 2 ? QTYPE_Q4_K : QTYPE_Q8_0;
    const enum act_kind kind = qtype_info((uint32_t)type)->act;
    const int h = floats(w, ROWS_ALL, EMBD, true, 0, r), x = floats(w, ROWS_ALL, EMBD, true, 0, r);
    const int a = acts(w, ROWS_ALL, kind, EMBD, 1, -1, r), table = floats(w, ROWS_ALL, DIM, false, 0, r);
    const int qkv[] = {floats(w, ROWS_ALL, N_Q * DIM, true, 0, r), floats(w, ROWS_ALL, N_KV * DIM, true, 0, r),
                       floats(w, ROWS_ALL, N_KV * DIM, true, 0, r)};
    const int out = floats(w, ROWS_ALL, N_Q * DIM, true, 0, r);
    const int mats[] = {matrix(w, type, EMBD, N_Q * DIM, 0, r), matrix(w, type, EMBD, N_KV * DIM, 0, r),
                        matrix(w, type, EMBD, N_KV * DIM, 0, r), matrix(w, type, N_Q * DIM, EMBD, 0, r)};
    const int norm = vector(w, EMBD, 0, r), head_norm = vector(w, DIM, 0, r), bank[] = {
        new_weight(w, NULL, type, true, EMBD, FF), new_weight(w, NULL, type, true, EMBD, FF),
        new_weight(w, NULL, type, true, FF, EMBD)};
    int k = 0;
    pages(w, kv, N_KV, DIM, DIM, r);
    route(w, type, type, EMBD, FF, n_rows, 0, r);
    for (int l = 0; l < n; l++) {
        for (int half = 0; half < 2; half++) {
            op[k] = an_op(OP_RMS_NORM, ROWS_ALL, h, x);
            op[k].weight[0] = norm;
            op[k++].p.head.eps = 1e-6f;
            op[k] = an_op(OP_PREPARE, ROWS_ALL, x, a);
            op[k++].p.prepare.kind = kind;
            if (half) break;
            op[k] = an_op(OP_MATMUL, ROWS_ALL, a, -1);
            memcpy(op[k].weight, mats, 3 * sizeof *mats);
            memcpy(op[k++].out, qkv, sizeof qkv);
            for (int i = 0; i < 2; i++) {
                op[k] = an_op(OP_HEAD_NORM, ROWS_ALL, -1, qkv[i]);
                op[k].weight[0] = head_norm;
                op[k].p.head.n_heads = i ? N_KV : N_Q;
                op[k].p.head.dim = DIM;
                op[k++].p.head.eps = 1e-6f;
                op[k] = an_op(OP_ROPE, ROWS_ALL, qkv[i], qkv[i]);
                op[k].in[1] = table;
                op[k].p.rope.n_heads = i ? N_KV : N_Q;
                op[k].p.rope.dim = op[k].p.rope.rope.n_rot = DIM;
                op[k++].p.rope.rope.neox = 1;
            }
            for (int i = 0; i < 2; i++) {
                op[k] = an_op(i ? OP_ATTENTION : OP_KV_PUT, ROWS_ALL, i ? qkv[0] : qkv[1], i ? out : -1);
                if (!i) op[k].in[1] = qkv[2];
                op[k].kv_slot = l % SLOTS;
                op[k].p.attn.n_q_heads = N_Q;
                op[k].p.attn.n_kv_heads = N_KV;
                op[k].p.attn.window = l % 3 == 1 ? 20 : 0;
                op[k].p.attn.dim = op[k].p.attn.dim_v = op[k].p.attn.dk = op[k].p.attn.dv = DIM;
                op[k++].p.attn.scale = 0.125f;
            }
            op[k] = an_op(OP_PREPARE, ROWS_ALL, out, a);
            op[k++].p.prepare.kind = kind;
            op[k] = an_op(OP_MATMUL, ROWS_ALL, a, x);
            op[k++].weight[0] = mats[3];
            op[k++] = an_op(OP_ADD, ROWS_ALL, x, h);
        }
        op[k] = an_op(OP_EXPERTS, ROWS_ALL, a, x);
        memcpy(op[k++].weight, bank, sizeof bank);
        op[k++] = an_op(OP_ADD, ROWS_ALL, x, h);
    }
    return k;
}

enum { LAYERS = 4, LAYER_OPS = 32 };

static void check_layers(struct check_opts *o)
{
    static const int rows[] = {1, 20, 12, 5};
    static struct op op[LAYERS * LAYER_OPS];
    struct rng r;
    char what[64];
    if (!check_wanted(o, "cuda.layers")) return;
    rng_seed(&r, o->seed + 9);
    for (int trial = 0; trial < 4; trial += CHECK_ONE_IN) {
        struct world *w = new_world(rows[trial % 4], &r);
        const int n = make_layers(w, op, LAYERS, (enum kv_type)(trial / 2 % 2), rows[trial % 4], trial, &r);
        snprintf(what, sizeof what, "%d ops, trial %d", n, trial);
        run(o, "cuda.layers", what, w, op, n);
        if (isnan(dev_buf_floats(&w->buf[0], 0)[0]))
            check_fail(o, "cuda.layers", what, "nothing but NaN was compared");
    }
}

/* ---- routing ---- */

/* Logits as they come, with ties, and damaged ones. */
static void fill_logits(float *x, int n, int regime, struct rng *r)
{
    for (int i = 0; i < n; i++) {
        x[i] = rng_range(r, -8.0f, 8.0f);
        if (regime == 1) x[i] = (float)(int)(x[i] / 3);
        if (regime == 2 && !rng_below(r, 5)) x[i] = NAN;
        if (regime == 3 && !rng_below(r, 7)) x[i] = rng_below(r, 2) ? INFINITY : -INFINITY;
        if (regime == 4) x[i] *= 40;
    }
}

static void route_one(struct check_opts *o, int trial, struct rng *r)
{
    static const int experts[] = {8, 64, 128, 256, 60, 512, 17, 1024}, used[] = {2, 8, 6, 8, 4, 10, 1, 32};
    const int i = trial % 8, n_rows = trial % 3 ? 1 : 7, set = sets[trial % 4];
    const struct route_params p = {
        .n_expert = experts[i], .n_used = used[i], .score = (enum route_score)(trial % 3),
        .normalise = trial / 2 % 2, .scale = trial % 5 ? 1.0f : 2.5f,
        .n_group = i < 4 && trial % 4 == 1 ? 8 : trial % 7 == 1 ? 1 : 0, .n_group_used = 4,
    };
    struct world *w = new_world(n_rows, r);
    const int n = w->set[set].n, slots = n * p.n_used, in = floats(w, set, p.n_expert, false, 0, r);
    const size_t bytes = (4 * (size_t)(slots + 16) + 63) / 64 * 64;
    struct op op = an_op(OP_ROUTE, set, in, new_buf(w, ROWS_ALL, 1, 0, 2 * bytes));
    struct err e;
    char what[96];
    op.p.moe.route = p;
    if (trial % 3 == 1) op.weight[0] = vector(w, p.n_expert, trial, r);
    if (trial % 4 == 3) op.weight[1] = vector(w, p.n_expert, trial + 1, r);
    for (int k = 0; k < n; k++) fill_logits(dev_buf_floats(&w->buf[in], k), p.n_expert, trial / 8 % 5, r);
    err_clear(&e);
    memcpy(arena.host, arena.here, arena.used);
    over(arena.card, arena.host, arena.used);
    if (submit(api, gpu, world_there(w), &op, 1, &e) != DEV_PASSED) {
        fprintf(stderr, "check_cuda: route: %s\n", e.msg);
        exit(1);
    }
    over(arena.host, arena.card, arena.used);
    const struct dev_choice c =
        dev_choice(arena.host + (w->buf[op.out[0]].base - arena.here), n, p.n_used);
    snprintf(what, sizeof what, "%d of %d, trial %d", p.n_used, p.n_expert, trial);
    for (int k = 0; k < n; k++) {
        float logits[GPU_EXPERTS], pick[GPU_EXPERTS], weight[GPU_USED];
        int32_t id[GPU_USED];
        memcpy(logits, dev_buf_row(&w->buf[in], k), 4 * (size_t)p.n_expert);
        route_token_choice(&p, elem_kernels(CPU_REF), op.weight[0] < 0 ? NULL : w->weight[op.weight[0]].data,
                           op.weight[1] < 0 ? NULL : w->weight[op.weight[1]].data, logits, pick, id, weight);
        for (int s = 0; s < p.n_used; s++, o->n_run++) {
            const float got = c.w[k * p.n_used + s];
            if (c.id[k * p.n_used + s] != id[s])
                check_fail(o, "cuda.route", what, "another expert");
            else if (memcmp(&got, &weight[s], 4) && !(isnan(got) && isnan(weight[s])))
                check_fail(o, "cuda.route", what, "another weight");
        }
    }
}

static void check_route(struct check_opts *o)
{
    struct rng r;
    if (!check_wanted(o, "cuda.route")) return;
    rng_seed(&r, o->seed ^ 77);
    for (int trial = 0; trial < 240; trial++)
        if (trial % CHECK_ONE_IN == 0) route_one(o, trial, &r);
}

/* What it has no kernels for it says so of: the host's ops, types, rows where tiles are wanted, heads. */
static void check_supports(struct check_opts *o)
{
    static const enum op_code hosts[] = {OP_EMBED, OP_ROPE_TABLE, OP_CHOOSE, OP_DEPTH, OP_SPAN,
                                         OP_SMOOTH, OP_FORESEE, OP_SCATTER, OP_KV_CARRY, OP_L2_NORM,
                                         OP_CONV, OP_DELTA_GATES, OP_DELTA};
    struct dev_weight w[] = {{NULL, QTYPE_Q8_0, false, 256, 256}, {NULL, QTYPE_SIGN1, true, 256, 256},
                             {NULL, QTYPE_Q8_0, true, 256, 256}};
    if (!check_wanted(o, "cuda.supports")) return;
    struct op op[64];
    bool want[64];
    int n = 0;
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) want[n] = false, op[n++] = an_op(hosts[i], 0, 0, 0);
    for (int i = 0; i < 3; i++) {
        want[n] = i == 2, op[n] = an_op(OP_MATMUL, 0, 0, 0), op[n++].weight[0] = i;
        want[n] = i == 2, op[n] = an_op(OP_EXPERTS, 0, 0, 0);
        for (int k = 0; k < OP_IO; k++) op[n].weight[k] = k == i ? i : 2;
        n++;
    }
    for (int i = 0; i < 2; i++) {
        want[n] = !i, op[n] = an_op(OP_ATTENTION, 0, 0, 0);
        op[n].p.attn.dk = op[n].p.attn.dv = GPU_HEAD + 16 * i;
        n++;
    }
    for (int i = 0; i < n; i++, o->n_run++)
        if (api->supports(gpu, &op[i], w) != want[i])
            check_fail(o, "cuda.supports", op_name(op[i].code), want[i] ? "no" : "yes");
}

/* ---- failures ---- */

static bool open_gpu(uint64_t memory)
{
    struct err e;
    err_clear(&e);
    if (api->open(memory, &gpu, &e)) return false;
    arena.card = api->alloc(gpu, DEV_OWN, ARENA);
    arena.host = api->alloc(gpu, DEV_HOST, ARENA);
    return arena.card && arena.host;
}

/* The emulated runtime fails from its nth command on: the device is lost, says so, and stays so. */
static void check_lost(struct check_opts *o)
{
    static struct op op[LAYERS * LAYER_OPS];
    struct rng r;
    int n_lost = 0, passed = 0;
    if (CHECK_CUDA_CLOCK || !check_wanted(o, "cuda.lost")) return;
    rng_seed(&r, o->seed + 11);
    struct world *w = new_world(3, &r);
    const int n = make_layers(w, op, LAYERS, KV_F16, 3, 0, &r);
    for (int at = 1; !passed; at += 1 + at / 20) {
        char mode[32];
        struct err e;
        err_clear(&e);
        snprintf(mode, sizeof mode, "lost=%d", at);
        (void)setenv("TEST_CUDA", mode, 1);
        if (!open_gpu((uint64_t)(640 + 48) << 20)) continue;
        const enum dev_state s = submit(api, gpu, world_there(w), op, n, &e);
        if (s == DEV_LOST) {
            n_lost++;
            if (!strstr(e.msg, "launch failure")) check_fail(o, "cuda.lost", mode, e.msg);
            if (api->wait(gpu, api->submit(gpu, op, n, &world_there(w)->bind), 10, NULL) != DEV_LOST)
                check_fail(o, "cuda.lost", mode, "it came back");
        } else if (s == DEV_PASSED) passed++;
        else check_fail(o, "cuda.lost", mode, "it does not answer");
        o->n_run++;
        api->close(gpu);
    }
    if (n_lost < 10) check_fail(o, "cuda.lost", "", "it was hardly ever lost");
    (void)setenv("TEST_CUDA", "", 1);
}

/* ---- benchmarks: on a GPU only, the emulation has no clock ---- */

enum { B_PAIRS = 8, B_RUNS = 40, B_COLS = 2048, B_FF = 768, B_EXPERTS = 128 };
static const size_t B_BYTES = (size_t)512 << 20; /* of weights: many times any cache */

static void *device_alloc(size_t n)
{
    void *p;
    must(cudaMalloc(&p, n), "cudaMalloc");
    return p;
}

static void *sent(const void *from, size_t n)
{
    void *p = device_alloc(n);
    must(cudaMemcpyAsync(p, from, n, cudaMemcpyDefault, stream), "a copy");
    settle();
    return p;
}

static double seconds_of(cudaEvent_t from, cudaEvent_t to)
{
    float ms = 0;
    settle();
    must(cudaEventElapsedTime(&ms, from, to), "the clock");
    return ms * 1e-3;
}

/* A decode step's launch again and again, each with weights of its own. */
static void bench_product(enum qtype type, int n_cols, int n_out, int n_mats, const char *what,
                          const char *weights, cudaEvent_t from, cudaEvent_t to)
{
    const struct qtype_info *t = qtype_info((uint32_t)type);
    const size_t tile = tile_bytes(type, n_cols), one = tile * (size_t)(n_out / TILE_ROWS);
    const size_t n = B_BYTES / one;
    static struct gpu_group group[B_RUNS * B_PAIRS];
    const size_t xbytes = act_bytes(t->act, n_cols), stride = 4 * (size_t)n_out;
    size_t at = 0;
    for (int i = 0; i < B_RUNS * B_PAIRS; i++) {
        group[i] = (struct gpu_group){.first = i % B_PAIRS, .n = 1};
        for (int m = 0; m < n_mats; m++) group[i].w[m] = weights + one * (at++ % n);
    }
    struct gpu_group *dev_group = sent(group, sizeof group);
    char *zeros = need(calloc(B_PAIRS, xbytes)), *x = sent(zeros, xbytes * B_PAIRS);
    char *out[2] = {device_alloc(stride * B_PAIRS), device_alloc(stride * B_PAIRS)};
    for (int i = -3; i < B_RUNS; i++) {
        struct gpu_product a = {
            .group = dev_group + B_PAIRS * (i < 0 ? 0 : i), .n_groups = B_PAIRS, .n_heads = 1,
            .n_mats = n_mats, .n_cols = n_cols, .tile_bytes = tile, .x = x, .x_stride = xbytes, .share = 1,
        };
        for (int m = 0; m < n_mats; m++)
            a.mat[m] = (struct gpu_mat){.out = out[m], .out_stride = stride, .n_rows = n_out,
                                        .n_tiles = n_out / TILE_ROWS};
        const struct gpu_launch l = gpu_product(type, &a);
        if (i == 0) must(cudaEventRecord(from, stream), "an event");
        must(gpu_start(stream, &l), "a product");
    }
    must(cudaEventRecord(to, stream), "an event");
    const double s = seconds_of(from, to) / B_RUNS;
    printf("bench cuda.%s.%s %d pairs: %.1f us, %.0f GB/s\n", t->name, what, B_PAIRS, 1e6 * s,
           1e-9 * (double)one * B_PAIRS * n_mats / s);
    must(cudaFree(dev_group), "cudaFree");
    must(cudaFree(x), "cudaFree");
    for (int m = 0; m < 2; m++) must(cudaFree(out[m]), "cudaFree");
    free(zeros);
}

/* A launch B_RUNS times: step() moves it on, so that it does not find what it read in a cache; so much of
 * a unit's billions are done. */
static void bench_launch(struct gpu_launch l, void (*step)(struct gpu_launch *l, int run), const char *what,
                         double much, const char *unit, cudaEvent_t from, cudaEvent_t to)
{
    for (int i = -3; i < B_RUNS; i++) {
        step(&l, i < 0 ? 0 : i);
        if (i == 0) must(cudaEventRecord(from, stream), "an event");
        must(gpu_start(stream, &l), what);
    }
    must(cudaEventRecord(to, stream), "an event");
    const double s = seconds_of(from, to) / B_RUNS;
    printf("bench cuda.%s: %.1f us, %.0f %s\n", what, 1e6 * s, 1e-9 * much / s, unit);
}

static const char *bench_at; /* B_BYTES of anything */
static size_t bench_step;    /* of it a launch reads */

static const char *bench_piece(int run)
{
    return bench_at + bench_step * ((size_t)run % (B_BYTES / bench_step));
}

static void step_product(struct gpu_launch *l, int run) { l->a.product.mat[0].w = bench_piece(run); }
static void step_attention(struct gpu_launch *l, int run) { l->a.attention.kv_at = (uint64_t)(bench_piece(run) - bench_at); }
static void step_nothing(struct gpu_launch *l, int run) { (void)l, (void)run; }

/* A dense matrix of B_COLS squared and n_rows rows, so many of which share a block. */
static void bench_dense(enum qtype type, int n_rows, int share, cudaEvent_t from, cudaEvent_t to)
{
    const struct qtype_info *t = qtype_info((uint32_t)type);
    const size_t tile = tile_bytes(type, B_COLS), xbytes = act_bytes(t->act, B_COLS) * (size_t)n_rows;
    char *zeros = need(calloc(1, xbytes)), *x = sent(zeros, xbytes), what[64];
    char *out = device_alloc(sizeof(float) * B_COLS * (size_t)n_rows);
    bench_step = tile * (B_COLS / TILE_ROWS);
    const struct gpu_product a = {
        .x = x, .x_stride = act_bytes(t->act, B_COLS), .tile_bytes = tile, .n_rows = n_rows, .n_heads = 1,
        .n_mats = 1, .n_cols = B_COLS, .share = share,
        .mat = {{.out = out, .out_stride = sizeof(float) * B_COLS, .n_rows = B_COLS,
                 .n_tiles = B_COLS / TILE_ROWS}},
    };
    snprintf(what, sizeof what, "%s.dense%d %d share", t->name, n_rows, share);
    if (n_rows == 1) bench_launch(gpu_product(type, &a), step_product, what, (double)bench_step, "GB/s", from, to);
    else bench_launch(gpu_product(type, &a), step_product, what, (double)B_COLS * B_COLS * n_rows, "GMAC/s", from, to);
    must(cudaFree(x), "cudaFree");
    must(cudaFree(out), "cudaFree");
    free(zeros);
}

/* Up and gate of B_EXPERTS experts, each for n_rows rows of a prompt. */
static void bench_experts(enum qtype type, int n_rows, int share, cudaEvent_t from, cudaEvent_t to)
{
    const struct qtype_info *t = qtype_info((uint32_t)type);
    const size_t tile = tile_bytes(type, B_COLS), one = tile * (B_FF / TILE_ROWS), row = act_bytes(t->act, B_COLS);
    static struct gpu_group group[B_EXPERTS * 64];
    int n = 0;
    for (int e = 0; e < B_EXPERTS; e++)
        for (int r = 0; r < n_rows; r += share) {
            group[n] = (struct gpu_group){.first = e * n_rows + r, .n = n_rows - r < share ? n_rows - r : share};
            for (int m = 0; m < 2; m++) group[n].w[m] = bench_at + one * ((size_t)(2 * e + m) % (B_BYTES / one));
            n++;
        }
    char *zeros = need(calloc(B_EXPERTS * (size_t)n_rows, row)), *x = sent(zeros, row * B_EXPERTS * (size_t)n_rows);
    char *out = device_alloc(sizeof(float) * B_FF * B_EXPERTS * (size_t)n_rows), what[64];
    struct gpu_group *dev_group = sent(group, sizeof group);
    struct gpu_product a = {
        .group = dev_group, .n_groups = n, .n_heads = 1, .n_mats = 2, .n_cols = B_COLS, .tile_bytes = tile, .x = x,
        .x_stride = row, .share = share,
    };
    for (int m = 0; m < 2; m++)
        a.mat[m] = (struct gpu_mat){.out = out, .out_stride = sizeof(float) * B_FF, .n_rows = B_FF,
                                    .n_tiles = B_FF / TILE_ROWS};
    snprintf(what, sizeof what, "%s.experts%d %d share", t->name, n_rows, share);
    bench_launch(gpu_product(type, &a), step_nothing, what, 2.0 * B_COLS * B_FF * B_EXPERTS * n_rows, "GMAC/s",
                 from, to);
    must(cudaFree(x), "cudaFree");
    must(cudaFree(out), "cudaFree");
    must(cudaFree(dev_group), "cudaFree");
    free(zeros);
}

/* One row of 32 query heads on 4 KV heads, in the middle of a text. */
static void bench_attention(int q8, cudaEvent_t from, cudaEvent_t to)
{
    enum { N_Q = 32, N_KV = 4, DIM = 128, POS = 4096 };
    const size_t head = attn_head_bytes(q8 ? KV_Q8_0 : KV_F16, DIM, DIM);
    static const float zeros[N_Q * DIM];
    const struct gpu_place place = {(char *)(uintptr_t)bench_at, 0, POS - 1};
    char *q = sent(zeros, sizeof zeros), *out = device_alloc(sizeof zeros), what[64];
    struct gpu_place *dev_place = sent(&place, sizeof place);
    bench_step = head * N_KV * (POS / KV_PAGE);
    const struct gpu_attention a = {
        .place = dev_place, .q = q, .out = out, .q_stride = sizeof zeros, .out_stride = sizeof zeros,
        .page_bytes = head * N_KV, .head_bytes = head, .n_rows = 1, .n_q = N_Q, .n_kv = N_KV, .dim = DIM,
        .dim_v = DIM, .dk = DIM, .dv = DIM, .q8 = q8, .scale = 0.1f,
    };
    snprintf(what, sizeof what, "attention.%s %d positions", q8 ? "q8_0" : "f16", POS);
    bench_launch(gpu_attention(&a), step_attention, what, (double)bench_step, "GB/s", from, to);
    must(cudaFree(q), "cudaFree");
    must(cudaFree(out), "cudaFree");
    must(cudaFree(dev_place), "cudaFree");
}

/* What an op takes that has next to nothing to do. */
static void bench_norm(cudaEvent_t from, cudaEvent_t to)
{
    char *x = device_alloc(sizeof(float) * B_COLS);
    const struct gpu_norm a = {.x = x, .y = x, .n_rows = 1, .n_heads = 1, .n = B_COLS, .eps = 1e-6f};
    bench_launch(gpu_norm(&a), step_nothing, "norm 1 row", 2 * sizeof(float) * B_COLS, "GB/s", from, to);
    must(cudaFree(x), "cudaFree");
}

static void bench(const struct check_opts *o)
{
    cudaEvent_t from, to;
    must(cudaEventCreateWithFlags(&from, cudaEventDefault), "an event");
    must(cudaEventCreateWithFlags(&to, cudaEventDefault), "an event");
    char *weights = device_alloc(B_BYTES);
    bench_at = weights;
    for (int i = -1; i < 8; i++) {
        if (i == 0) must(cudaEventRecord(from, stream), "an event");
        must(cudaMemcpyAsync(weights, weights + B_BYTES / 2, B_BYTES / 2, cudaMemcpyDefault, stream),
             "a copy");
    }
    must(cudaEventRecord(to, stream), "an event");
    printf("bench device copy: %.0f GB/s read and written\n",
           1e-9 * (double)B_BYTES * 8 / seconds_of(from, to));
    for (int i = 0; qtype_at(i); i++) {
        const enum qtype type = qtype_at(i)->id;
        char name[64];
        if (!gpu_has_product(type) || !check_wanted(o, name_of("cuda.", qtype_at(i)->name, name, 64)))
            continue;
        bench_product(type, B_COLS, B_FF, 2, "up", weights, from, to);
        bench_product(type, B_FF, B_COLS, 1, "down", weights, from, to);
        bench_dense(type, 1, 1, from, to);
        for (int rows = 8; rows <= 512; rows *= 2) /* where tensor cores begin to pay */
            for (int share = GPU_ROWS; share <= gpu_share(type, GPU_MANY); share += GPU_MANY - GPU_ROWS)
                bench_dense(type, rows, share, from, to);
        for (int rows = 8; rows <= 64; rows *= 2)
            for (int share = GPU_ROWS; share <= gpu_share(type, GPU_MANY); share += GPU_MANY - GPU_ROWS)
                bench_experts(type, rows, share, from, to);
    }
    for (int q8 = 0; q8 < 2; q8++)
        if (check_wanted(o, "cuda.attention")) bench_attention(q8, from, to);
    if (check_wanted(o, "cuda.norm")) bench_norm(from, to);
    must(cudaFree(weights), "cudaFree");
}

/* Ops of each kind, and how many shapes of them. */
static const struct { enum op_code code; int n; make_fn *make; } kinds[] = {
    {OP_RMS_NORM, 48, make_norm},       {OP_HEAD_NORM, 48, make_norm},
    {OP_PREPARE, 72, make_prepare},     {OP_HEAD_PREPARE, 36, make_prepare},
    {OP_ROPE, 40, make_rope},           {OP_ADD, 28, make_map},
    {OP_MUL, 28, make_map},             {OP_GATE, 48, make_map},
    {OP_SCALE, 28, make_map},           {OP_SOFTCAP, 28, make_map},
    {OP_ADD_BIAS, 28, make_map},        {OP_FILL, 28, make_map},
    {OP_GLU, 56, make_map},             {OP_SELECT, 24, make_select},
    {OP_COPY_HEADS, 24, make_copy_heads}, {OP_HEAD_MATMUL, 30, make_head_matmul},
    {OP_KV_PUT, 42, make_kv},           {OP_ATTENTION, 84, make_kv},
};

int main(int argc, char **argv)
{
    struct check_opts o;
    struct pool *pool;
    if (!check_parse(&o, argc, argv)) return 2;
    int n = 0;
    must(cudaGetDeviceCount(&n), "looking for a GPU");
    must(cudaSetDevice(0), "the GPU");
    if (!o.list) printf("kernels run on %s\n", CHECK_CUDA_ON);
    if (o.bench) {
        must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "a stream");
        if (CHECK_CUDA_CLOCK) bench(&o);
        else puts("no GPU, no numbers");
        return 0;
    }
    api = tessera_device();
    arena.here = need(aligned_alloc(64, ARENA));
    if (pool_open(1, &pool, NULL) || dev_cpu_open(pool, CPU_REF, &cpu, NULL)) return 1;
    if (!open_gpu(UINT64_MAX)) {
        fputs("check_cuda: the device does not open\n", stderr);
        return 1;
    }
    for (int i = 0; qtype_at(i); i++)
        if (gpu_has_product(qtype_at(i)->id)) check_type(&o, qtype_at(i)->id);
    check_type(&o, QTYPE_NEST2);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        check_op(&o, kinds[i].code, kinds[i].n, kinds[i].make);
    check_many_rows(&o);
    check_uploads(&o);
    check_layers(&o);
    check_route(&o);
    check_supports(&o);
    api->close(gpu);
    check_lost(&o);
    dev_cpu_api()->close(cpu);
    pool_close(pool);
    free(arena.here);
    return check_finish(&o);
}
