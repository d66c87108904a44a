/* Ops as launches of the CUDA plugin's kernels, and what they read that the host has: places of rows in
 * KV pages, selected rows, experts' pairs.
 *
 * Owns nothing; what it makes goes into batches (cuda_int.h), which dev_cuda.c sends.  It reads the
 * structs of a submission only while submit() runs, so that they may change when that returns.  The
 * semantics are those of dev_cpu.c, op by op.
 *
 * DESIGN.  Rows of an op beyond ROWS_MOST come in another launch.  Pairs of experts are listed in groups
 * that meet the same expert, so that a block reads a tile once for them: as many as the kernel takes that
 * suits the pairs that an expert has on average.  Where no expert has two pairs, as when a single token is
 * made, a pair has a block of its own.  A list ends with an expert, unless that alone is longer. */
#include "moe/compute/cuda/cuda_int.h"

#include <string.h>

#include "quant/mm.h"

/* Of one launch. */
enum { LIST_PAIRS = 4096, LIST_EXPERTS = BATCH_READS / OP_IO };

/* Some rows of an op. */
struct rows {
    struct dev *d;
    const struct op *op;
    const struct dev_bind *b;
    int first, n;
};

static int n_tiles(const struct dev_weight *w) { return (w->n_rows + TILE_ROWS - 1) / TILE_ROWS; }

static uint64_t matrix_bytes(const struct dev_weight *w)
{
    if (w->type == QTYPE_NEST2) return dev_stacked_bytes(w->n_cols, w->n_rows, STACK_NESTED);
    return (uint64_t)n_tiles(w) * tile_bytes(w->type, w->n_cols);
}

/* ---- what ops are made of ---- */

static const struct dev_weight *weight_of(const struct rows *r, int k)
{
    return r->op->weight[k] < 0 ? NULL : &r->b->weight[r->op->weight[k]];
}

static const void *touched(const struct rows *r, const void *at, uint64_t bytes)
{
    if (at) batch_touches(r->d, at, bytes);
    return at;
}

/* A vector of floats; NULL: there is none. */
static const float *vector(const struct rows *r, int k)
{
    const struct dev_weight *w = weight_of(r, k);
    return w ? touched(r, w->data, sizeof(float) * (uint64_t)w->n_cols *
                                       (uint64_t)(w->n_rows > 0 ? w->n_rows : 1))
             : NULL;
}

static const void *matrix(const struct rows *r, const struct dev_weight *w)
{
    return touched(r, w->data, matrix_bytes(w));
}

/* The first of these rows in a buffer of the op's row set. */
static char *row_at(const struct rows *r, int buf)
{
    const struct dev_buf *b = &r->b->buf[buf];
    char *at = dev_buf_row(b, r->first);
    batch_touches(r->d, at, (uint64_t)b->stride * (uint64_t)r->n);
    return at;
}

static uint64_t stride_of(const struct rows *r, int buf) { return r->b->buf[buf].stride; }
static int width_of(const struct rows *r, int buf) { return r->b->buf[buf].width; }

static void *list_in(struct batch *q, uint64_t bytes, const void **own)
{
    void *host = q->host + q->used;
    *own = q->own + q->used;
    q->used += (bytes + 63) & ~(uint64_t)63;
    return host;
}

static void start(struct batch *q, struct gpu_launch l) { q->launch[q->n_launches++] = l; }

/* ---- rows of floats ---- */

static void run_norm(const struct rows *r, struct batch *q)
{
    const struct op *op = r->op;
    const bool heads = op->code == OP_HEAD_NORM;
    const int in = heads ? op->out[0] : op->in[0];
    start(q, gpu_norm(&(struct gpu_norm){
        .x = row_at(r, in), .x_stride = stride_of(r, in), .y = row_at(r, op->out[0]),
        .y_stride = stride_of(r, op->out[0]), .w = vector(r, 0), .n_rows = r->n,
        .n_heads = heads ? op->p.head.n_heads : 1,
        .n = heads ? op->p.head.dim : width_of(r, op->out[0]), .eps = op->p.head.eps,
    }));
}

static void run_prepare(const struct rows *r, struct batch *q)
{
    const struct op *op = r->op;
    struct gpu_prepare a = {
        .x = row_at(r, op->in[0]), .x_stride = stride_of(r, op->in[0]), .out = row_at(r, op->out[0]),
        .out_stride = stride_of(r, op->out[0]), .n_rows = r->n, .n_heads = 1,
        .n = width_of(r, op->out[0]),
    };
    enum act_kind kind = op->p.prepare.kind;
    if (op->code == OP_HEAD_PREPARE) {
        a.n_heads = op->p.prepare.n_heads;
        a.n = op->p.prepare.dim;
        a.x_head = op->p.prepare.stride;
        a.out_head = act_bytes(kind, a.n);
    } else if (op->code == OP_GLU) {
        kind = ACT_F32;
        a.up = row_at(r, op->in[1]);
        a.up_stride = stride_of(r, op->in[1]);
        a.act = (int)op->p.glu.act;
    }
    start(q, gpu_prepare(kind, &a));
}

static void run_rope(const struct rows *r, struct batch *q)
{
    const struct op *op = r->op;
    start(q, gpu_rope(&(struct gpu_rope){
        .cs = row_at(r, op->in[1]), .cs_stride = stride_of(r, op->in[1]), .x = row_at(r, op->out[0]),
        .x_stride = stride_of(r, op->out[0]), .n_rows = r->n, .n_heads = op->p.rope.n_heads,
        .dim = op->p.rope.dim, .at = op->p.rope.at, .n_rot = op->p.rope.rope.n_rot,
        .neox = op->p.rope.rope.neox,
    }));
}

/* Rows of in that may be of another row set: which ones, as the card finds them. */
static const int32_t *selected(const struct rows *r, struct batch *q, int buf)
{
    const struct dev_rows *set = &r->b->set[r->op->rows], *from = &r->b->set[r->b->buf[buf].rows];
    const void *own;
    int32_t *list = list_in(q, sizeof *list * (uint64_t)r->n, &own);
    for (int i = 0; i < r->n; i++) list[i] = dev_row_in(from, dev_row_at(set, r->first + i));
    return own;
}

static void run_map(const struct rows *r, struct batch *q)
{
    const struct op *op = r->op;
    const int out = op->out[0], in = op->in[0];
    struct gpu_map a = {.y_stride = stride_of(r, out), .n_rows = r->n, .n_heads = 1, .n = width_of(r, out)};
    char *y = row_at(r, out);
    if (op->code != OP_SELECT && in >= 0) {
        a.x = row_at(r, in);
        a.x_stride = stride_of(r, in);
    }
    switch ((int)op->code) {
    case OP_ADD: a.code = GPU_ADD; break;
    case OP_MUL: a.code = GPU_MUL; break;
    case OP_GATE:
        a.code = GPU_GATE;
        a.one = width_of(r, in) == 1;
        break;
    case OP_SCALE:
        a.code = GPU_SCALE;
        a.by = op->p.scale.by;
        a.w = vector(r, 0);
        break;
    case OP_SOFTCAP:
        a.code = GPU_SOFTCAP;
        a.by = op->p.scale.by;
        break;
    case OP_ADD_BIAS:
        a.code = GPU_ADD;
        a.x = (const char *)(vector(r, 0) + op->p.bias.at);
        a.x_stride = 0;
        break;
    case OP_FILL:
        a.x = (const char *)vector(r, 0);
        a.x_stride = 0;
        a.n = weight_of(r, 0)->n_cols;
        y += sizeof(float) * (size_t)op->p.bias.at;
        break;
    case OP_COPY_HEADS:
        a.x += (int)sizeof(float) * op->p.copy.at_in;
        y += (int)sizeof(float) * op->p.copy.at_out;
        a.x_head = op->p.copy.stride_in;
        a.y_head = op->p.copy.stride_out;
        a.n_heads = op->p.copy.n_heads;
        a.n = op->p.copy.dim;
        break;
    default: /* OP_SELECT: whole rows, of whatever kind */
        a.x = r->b->buf[in].base;
        a.x_stride = stride_of(r, in);
        a.x_row = selected(r, q, in);
        a.n = (int)(stride_of(r, out) / sizeof(float));
        batch_touches(r->d, a.x, a.x_stride * (uint64_t)r->b->set[r->b->buf[in].rows].n);
    }
    a.y = y;
    start(q, gpu_map(&a));
}

/* ---- products ---- */

/* One launch for all weights of a type. */
static void run_matmul(const struct rows *r, struct batch *q)
{
    const struct op *op = r->op;
    const struct dev_weight *w[GPU_MATS];
    for (int i = 0; i < GPU_MATS; i++) w[i] = weight_of(r, i);
    for (int i = 0; i < GPU_MATS && w[i]; i++) {
        struct gpu_product a = {
            .x = row_at(r, op->in[0]), .x_stride = stride_of(r, op->in[0]), .n_rows = r->n, .n_heads = 1,
            .tile_bytes = tile_bytes(w[i]->type, w[i]->n_cols), .n_cols = w[i]->n_cols,
            .share = gpu_share(w[i]->type, r->n),
        };
        bool done = false;
        for (int k = 0; k < GPU_MATS && w[k]; k++) {
            if (w[k]->type != w[i]->type) continue;
            done |= k < i;
            a.mat[a.n_mats++] = (struct gpu_mat){
                .w = matrix(r, w[k]), .out = row_at(r, op->out[k]), .out_stride = stride_of(r, op->out[k]),
                .n_rows = w[k]->n_rows, .n_tiles = n_tiles(w[k]),
            };
        }
        if (!done) start(q, gpu_product(w[i]->type, &a));
    }
}

static void run_head_matmul(const struct rows *r, struct batch *q)
{
    const struct op *op = r->op;
    const struct dev_weight *w = weight_of(r, 0);
    const int per_head = n_tiles(w) / op->p.heads.n_heads;
    const struct gpu_product a = {
        .x = row_at(r, op->in[0]), .x_stride = stride_of(r, op->in[0]), .n_rows = r->n,
        .n_heads = op->p.heads.n_heads, .x_head = act_bytes(qtype_info((uint32_t)w->type)->act, w->n_cols),
        .out_head = sizeof(float) * (uint64_t)op->p.heads.stride,
        .tile_bytes = tile_bytes(w->type, w->n_cols), .n_cols = w->n_cols,
        .share = gpu_share(w->type, r->n), .n_mats = 1,
        .mat = {{.w = matrix(r, w), .out = row_at(r, op->out[0]), .out_stride = stride_of(r, op->out[0]),
                 .n_rows = per_head * TILE_ROWS, .n_tiles = per_head}},
    };
    start(q, gpu_product(w->type, &a));
}

/* ---- keys and values ---- */

/* The pages of a session up to position `last`. */
static void touch_pages(const struct rows *r, char *kv, int32_t last)
{
    batch_touches(r->d, kv, r->b->set[r->op->kv_rows].kv_page_bytes * (uint64_t)(last / KV_PAGE + 1));
}

/* Where rows are on their timeline, and from where on up to where they see it. */
static const struct gpu_place *places(const struct rows *r, struct batch *q, int window, int sees)
{
    const struct op *op = r->op;
    const struct dev_bind *b = r->b;
    const struct dev_rows *set = &b->set[op->rows], *line = &b->set[op->kv_rows];
    const struct batch_places key = {op->rows, op->kv_rows, window, sees, r->first, q->used};
    for (int i = 0; i < q->n_places; i++) {
        const struct batch_places *p = &q->places[i];
        if (p->rows == key.rows && p->kv_rows == key.kv_rows && p->window == window && p->sees == sees &&
            p->first == key.first)
            return (const void *)(q->own + p->at);
    }
    const void *own;
    struct gpu_place *list = list_in(q, sizeof *list * (uint64_t)r->n, &own);
    char *kv = NULL;
    int32_t most = 0;
    for (int i = 0; i < r->n; i++) {
        const int at = dev_row_at(set, r->first + i), session = b->row[at].session;
        const int32_t pos = line->pos ? line->pos[at] : b->row[at].pos;
        const int32_t last = sees ? dev_last_seen(sees, pos, b->end[session]) : pos;
        list[i] = (struct gpu_place){.kv = line->kv_base[session], .last = last,
                                     .first = window > 0 && pos >= window ? pos - window + 1 : 0};
        if (kv && kv != list[i].kv) {
            touch_pages(r, kv, most);
            most = 0;
        }
        kv = list[i].kv;
        if (last > most) most = last;
    }
    touch_pages(r, kv, most);
    if (q->n_places < BATCH_PLACES) q->places[q->n_places++] = key;
    return own;
}

static void run_kv_put(const struct rows *r, struct batch *q)
{
    const struct op *op = r->op;
    const bool latent = op->p.attn.latent;
    const int dk = op->p.attn.dk, dv = latent ? 0 : op->p.attn.dv;
    start(q, gpu_kv_put(&(struct gpu_kv_put){
        .place = places(r, q, 0, SEES_BEFORE), .k = row_at(r, op->in[0]),
        .k_stride = stride_of(r, op->in[0]), .v = latent ? NULL : row_at(r, op->in[1]),
        .v_stride = latent ? 0 : stride_of(r, op->in[1]), .kv_at = r->b->kv_offset[op->kv_slot],
        .page_bytes = r->b->set[op->kv_rows].kv_page_bytes,
        .head_bytes = attn_head_bytes(r->b->kv_type, dk, dv), .n_rows = r->n,
        .n_kv = op->p.attn.n_kv_heads, .dim = op->p.attn.dim, .dim_v = op->p.attn.dim_v, .dk = dk, .dv = dv,
        .q8 = r->b->kv_type == KV_Q8_0,
    }));
}

static void run_attention(const struct rows *r, struct batch *q)
{
    const struct op *op = r->op;
    const bool latent = op->p.attn.latent;
    const int dk = op->p.attn.dk, dv = op->p.attn.dv;
    start(q, gpu_attention(&(struct gpu_attention){
        .place = places(r, q, op->p.attn.window, op->p.attn.sees), .q = row_at(r, op->in[0]),
        .q_stride = stride_of(r, op->in[0]), .out = row_at(r, op->out[0]),
        .out_stride = stride_of(r, op->out[0]), .sink = vector(r, 0),
        .kv_at = r->b->kv_offset[op->kv_slot], .page_bytes = r->b->set[op->kv_rows].kv_page_bytes,
        .head_bytes = attn_head_bytes(r->b->kv_type, dk, latent ? 0 : dv), .n_rows = r->n,
        .n_q = op->p.attn.n_q_heads, .n_kv = op->p.attn.n_kv_heads, .dim = op->p.attn.dim,
        .dim_v = op->p.attn.dim_v, .dk = dk, .dv = dv, .q8 = r->b->kv_type == KV_Q8_0, .latent = latent,
        .scale = op->p.attn.scale,
    }));
}

/* ---- experts ---- */

struct layer {
    struct rows r;
    const struct dev_route *rt; /* NULL: the card has chosen */
    uint64_t n_pairs;           /* that scratch is laid out for */
    const struct dev_weight *w[OP_IO];
    const float *bias[OP_IO]; /* NULL = none */
    enum act_kind kind;
    uint64_t ff_stride, prep_stride, out_stride;
    char *gate, *up, *prep, *out;
};

static struct layer layer_of(struct dev *d, const struct op *op, const struct dev_bind *b)
{
    const int n_rows = b->route ? b->route->n_rows : b->set[op->rows].n;
    struct layer l = {.r = {d, op, b, 0, n_rows}, .rt = b->route};
    for (int k = 0; k < OP_IO; k++) l.w[k] = weight_of(&l.r, k);
    const uint64_t n = (uint64_t)(b->route ? b->route->n_pairs : n_rows * op->p.moe.route.n_used);
    l.n_pairs = n;
    l.kind = qtype_info((uint32_t)l.w[2]->type)->act;
    l.ff_stride = dev_experts_hidden_stride(l.w[0]->n_rows);
    l.prep_stride = act_bytes(l.kind, l.w[0]->n_rows);
    l.out_stride = dev_experts_out_stride(l.w[0]->n_cols);
    l.gate = b->scratch;
    l.up = l.gate + n * l.ff_stride;
    l.prep = l.up + n * l.ff_stride;
    l.out = b->route && b->route->pair_out ? b->route->pair_out : l.prep + n * l.prep_stride;
    return l;
}

/* What lies in device memory, for the batch that is being filled. */
static void touch_layer(struct layer *l)
{
    const uint64_t n = l->n_pairs;
    batch_touches(l->r.d, l->gate, (uint64_t)(l->prep - l->gate) + n * l->prep_stride);
    batch_touches(l->r.d, l->out, n * l->out_stride);
    for (int k = 0; k < OP_IO; k++) l->bias[k] = vector(&l->r, OP_IO + k);
}

/* Some pairs: at .. at + n - 1, the first of which are expert number a's, in groups of up to `share`. */
struct list {
    int a, at, n, n_experts, share;
};

/* As many as a list has from there on. */
static struct list next_list(const struct layer *l, int a, int at)
{
    const int32_t *first = l->rt->first;
    struct list s = {.a = a, .at = at};
    for (; a < l->rt->end && first[a + 1] - at <= LIST_PAIRS && s.n_experts < LIST_EXPERTS; a++) {
        s.n_experts += first[a + 1] > at + s.n;
        s.n = first[a + 1] - at;
    }
    if (!s.n) s.n = LIST_PAIRS, s.n_experts = 1;
    s.share = GPU_MANY;
    for (int k = 0; k < OP_IO; k++) {
        const int share = gpu_share(l->w[k]->type, (s.n + s.n_experts - 1) / s.n_experts);
        if (share < s.share) s.share = share;
    }
    return s;
}

static int most_groups(const struct list *s) { return s->n / s->share + s->n_experts; }

/* Returns the number of the last pair's expert. */
static int list_pairs(const struct layer *l, struct batch *q, const struct list *s, struct gpu_group *group,
                      int *n_groups, int32_t *row)
{
    const struct dev_route *rt = l->rt;
    struct gpu_group *g = NULL;
    int a = s->a;
    *n_groups = 0;
    for (int i = 0, last = -1; i < s->n; i++) {
        while (s->at + i >= rt->first[a + 1]) a++;
        if (a != last || g->n == s->share) {
            g = &group[(*n_groups)++];
            *g = (struct gpu_group){.w = {rt->gate[a], rt->up[a], rt->down[a]}, .expert = rt->expert[a],
                                    .first = i};
        }
        g->n++;
        row[i] = rt->pair[s->at + i] / rt->n_used;
        for (int k = 0; k < OP_IO && a != last; k++)
            batch_reads(l->r.d, q, g->w[k], matrix_bytes(l->w[k]));
        last = a;
    }
    return a;
}

/* Matrices k .. k + n_mats - 1 of pairs c0 on. */
static void multiply(const struct layer *l, struct batch *q, struct gpu_product a, int k, int n_mats, int c0)
{
    const struct dev_weight *w = l->w[k];
    char *const to[OP_IO] = {l->gate, l->up, l->out};
    const uint64_t stride = k < 2 ? l->ff_stride : l->out_stride;
    a.first = k;
    a.n_mats = n_mats;
    a.n_cols = w->n_cols;
    a.tile_bytes = tile_bytes(w->type, w->n_cols);
    if (k == 2) {
        a.row = NULL;
        a.n_used = 0;
        a.x = l->prep + l->prep_stride * (uint64_t)c0;
        a.x_stride = l->prep_stride;
    }
    for (int m = 0; m < n_mats; m++)
        a.mat[m] = (struct gpu_mat){.bias = l->bias[k + m], .out = to[k + m] + stride * (uint64_t)c0,
                                    .out_stride = stride, .n_rows = w->n_rows, .n_tiles = n_tiles(w)};
    start(q, gpu_product(w->type, &a));
}

/* Gate and up, the activation, down, of n pairs from c0 on. */
static void feed_forward(const struct layer *l, struct batch *q, const struct gpu_product *p, int c0, int n)
{
    const bool same = l->w[0]->type == l->w[1]->type;
    const uint64_t at = (uint64_t)c0;
    multiply(l, q, *p, 0, same ? 2 : 1, c0);
    if (!same) multiply(l, q, *p, 1, 1, c0);
    start(q, gpu_prepare(l->kind, &(struct gpu_prepare){
        .x = l->gate + l->ff_stride * at, .up = l->up + l->ff_stride * at,
        .x_stride = l->ff_stride, .up_stride = l->ff_stride,
        .out = l->prep + l->prep_stride * at, .out_stride = l->prep_stride, .n_rows = n,
        .n_heads = 1, .n = l->w[0]->n_rows, .act = (int)l->r.op->p.moe.act,
    }));
    multiply(l, q, *p, 2, 1, c0);
}

static void run_pairs(struct layer *l)
{
    const struct dev_route *rt = l->rt;
    const int in = l->r.op->in[0];
    for (int a = rt->begin, at = rt->first[a], n_groups; at < rt->first[rt->end];) {
        const struct list s = next_list(l, a, at);
        const uint64_t group_bytes = sizeof(struct gpu_group) * (uint64_t)most_groups(&s);
        const uint64_t row_bytes = sizeof(int32_t) * (uint64_t)s.n;
        struct batch *q = batch_room(l->r.d, 4, OP_IO * s.n_experts, group_bytes + row_bytes + 64);
        const void *group, *row;
        if (!q) return;
        touch_layer(l);
        struct gpu_group *groups = list_in(q, group_bytes, &group);
        int32_t *rows = list_in(q, row_bytes, &row);
        a = list_pairs(l, q, &s, groups, &n_groups, rows);
        const struct gpu_product p = {.group = group, .row = row, .x = row_at(&l->r, in),
                                      .x_stride = stride_of(&l->r, in), .n_groups = n_groups, .n_heads = 1,
                                      .share = s.share};
        feed_forward(l, q, &p, at, s.n);
        at += s.n;
    }
}

/* The sum over the slots of rows first .. first + n - 1. */
static void sum_rows(struct layer *l, int first, int n)
{
    const struct dev_route *rt = l->rt;
    const int k = rt->n_used, out = l->r.op->out[0];
    const uint64_t bytes = sizeof(struct gpu_slot) * (uint64_t)n * (uint64_t)k;
    struct batch *q = batch_room(l->r.d, 1, 0, bytes);
    const struct rows r = {l->r.d, l->r.op, l->r.b, first, n};
    const void *own;
    if (!q) return;
    touch_layer(l);
    struct gpu_slot *slot = list_in(q, bytes, &own);
    for (int i = 0; i < n * k; i++) slot[i] = (struct gpu_slot){-1, rt->w[(size_t)first * (size_t)k + (size_t)i]};
    for (int c = 0; c < rt->first[rt->n_active]; c++) {
        const int i = rt->pair[c] - first * k;
        if (i >= 0 && i < n * k && (!rt->n_of || i % k < rt->n_of[first + i / k])) slot[i].pair = c;
    }
    start(q, gpu_combine(&(struct gpu_combine){
        .slot = own, .x = l->out, .x_stride = l->out_stride, .out = row_at(&r, out),
        .out_stride = stride_of(&r, out), .n_rows = n, .n_used = k, .n = l->w[0]->n_cols,
    }));
}

/* What OP_ROUTE has left. */
static struct dev_choice choice_of(const struct rows *r, int control)
{
    const struct dev_buf *b = &r->b->buf[control];
    const int k = r->op->p.moe.route.n_used, n = r->b->set[r->op->rows].n;
    const struct dev_choice c = dev_choice(b->base, n, k);
    batch_touches(r->d, b->base, (uint64_t)((char *)(c.id + (size_t)n * (size_t)k) - b->base));
    return c;
}

static void run_route(const struct rows *r, struct batch *q)
{
    const struct op *op = r->op;
    const struct route_params *p = &op->p.moe.route;
    const struct dev_choice c = choice_of(r, op->out[0]);
    const size_t first = (size_t)r->first * (size_t)p->n_used;
    start(q, gpu_route(&(struct gpu_route){
        .x = row_at(r, op->in[0]), .x_stride = stride_of(r, op->in[0]), .bias = vector(r, 0),
        .scale = vector(r, 1), .w = c.w + first, .id = c.id + first, .n_rows = r->n,
        .n_expert = p->n_expert, .n_used = p->n_used, .score = (int)p->score, .normalise = p->normalise,
        .n_group = p->n_group, .n_group_used = p->n_group_used, .by = p->scale,
    }));
}

/* Every pair by itself: only the card knows which experts they meet. */
static void run_chosen(struct dev *d, const struct op *op, const struct dev_bind *b)
{
    struct layer l = layer_of(d, op, b);
    const int k = op->p.moe.route.n_used, n = l.r.n * k, in = op->in[0], out = op->out[0];
    struct batch *q = batch_room(d, 5, 0, 0);
    if (!q) return;
    touch_layer(&l);
    const struct dev_choice c = choice_of(&l.r, op->in[1]);
    const void *const *table = touched(&l.r, b->table[op->weight[0]], sizeof(void *) * OP_IO *
                                                       (uint64_t)op->p.moe.route.n_expert);
    feed_forward(&l, q, &(struct gpu_product){
        .id = c.id, .table = table, .x = row_at(&l.r, in), .x_stride = stride_of(&l.r, in),
        .n_rows = n, .n_heads = 1, .n_used = k, .share = 1}, 0, n);
    start(q, gpu_combine(&(struct gpu_combine){
        .w = c.w, .x = l.out, .x_stride = l.out_stride, .out = row_at(&l.r, out),
        .out_stride = stride_of(&l.r, out), .n_rows = l.r.n, .n_used = k, .n = l.w[0]->n_cols,
    }));
}

static void run_experts(struct dev *d, const struct op *op, const struct dev_bind *b)
{
    struct layer l = layer_of(d, op, b);
    const struct dev_route *rt = b->route;
    if (rt->begin < rt->end) run_pairs(&l);
    int most = (int)(LIST_BYTES / 2 / (sizeof(struct gpu_slot) * (size_t)rt->n_used));
    if (most > ROWS_MOST) most = ROWS_MOST;
    for (int at = 0; rt->sum && at < rt->n_rows; at += most)
        sum_rows(&l, at, rt->n_rows - at < most ? rt->n_rows - at : most);
}

/* ---- ops ---- */

void cuda_run(struct dev *d, const struct op *op, const struct dev_bind *b)
{
    const int n = b->set[op->rows].n;
    if (op->code == OP_EXPERTS) {
        if (!b->route && n) run_chosen(d, op, b);
        else if (b->route && b->route->n_rows) run_experts(d, op, b);
        return;
    }
    for (int at = 0; at < n; at += ROWS_MOST) {
        const struct rows r = {d, op, b, at, n - at < ROWS_MOST ? n - at : ROWS_MOST};
        struct batch *q = batch_room(d, GPU_MATS, 0, sizeof(struct gpu_place) * (uint64_t)r.n);
        if (!q) return;
        switch ((int)op->code) {
        case OP_RMS_NORM:
        case OP_HEAD_NORM: run_norm(&r, q); break;
        case OP_PREPARE:
        case OP_HEAD_PREPARE:
        case OP_GLU: run_prepare(&r, q); break;
        case OP_MATMUL: run_matmul(&r, q); break;
        case OP_HEAD_MATMUL: run_head_matmul(&r, q); break;
        case OP_ROPE: run_rope(&r, q); break;
        case OP_ROUTE: run_route(&r, q); break;
        case OP_KV_PUT: run_kv_put(&r, q); break;
        case OP_ATTENTION: run_attention(&r, q); break;
        default: run_map(&r, q); break;
        }
    }
}

static bool has_product(const struct dev_weight *w) { return w->tiles && gpu_has_product(w->type); }

static bool is_vector(const struct dev_weight *w) { return w->type == QTYPE_F32 && !w->tiles; }

bool cuda_can(const struct op *op, const struct dev_weight *weight)
{
    const struct dev_weight *w[OP_WEIGHTS];
    for (int k = 0; k < OP_WEIGHTS; k++) w[k] = op->weight[k] < 0 ? NULL : &weight[op->weight[k]];
    switch ((int)op->code) {
    case OP_EXPERTS:
        for (int k = 0; k < OP_IO; k++)
            if (!has_product(w[k]) || (w[OP_IO + k] && !is_vector(w[OP_IO + k]))) return false;
        return w[0]->n_rows == w[1]->n_rows && w[0]->n_cols == w[1]->n_cols;
    case OP_MATMUL:
        for (int k = 0; k < OP_IO && w[k]; k++)
            if (!has_product(w[k])) return false;
        return w[0] != NULL;
    case OP_HEAD_MATMUL: return has_product(w[0]) && !qtype_is_stacked(w[0]->type);
    case OP_ROUTE: {
        const struct route_params *p = &op->p.moe.route;
        return p->n_expert <= GPU_EXPERTS && p->n_used <= GPU_USED && p->n_group <= GPU_GROUPS &&
               !p->choice.k_max && (!w[0] || is_vector(w[0])) && (!w[1] || is_vector(w[1]));
    }
    case OP_PREPARE:
    case OP_HEAD_PREPARE:
    case OP_KV_PUT: return true;
    case OP_ATTENTION:
        return op->p.attn.dk <= GPU_HEAD && op->p.attn.dv <= GPU_HEAD && (!w[0] || is_vector(w[0]));
    case OP_RMS_NORM:
    case OP_HEAD_NORM:
    case OP_ADD_BIAS:
    case OP_FILL:
    case OP_SCALE: return !w[0] || is_vector(w[0]);
    case OP_ROPE:
    case OP_COPY_HEADS:
    case OP_ADD:
    case OP_MUL:
    case OP_GATE:
    case OP_SOFTCAP:
    case OP_SELECT:
    case OP_GLU: return true;
    default: return false;
    }
}
