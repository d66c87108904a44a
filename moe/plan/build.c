/* See build.h. */
#include "moe/plan/build.h"
#include "moe/compute/dev.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void build_init(struct build *b, struct weights *ws, struct err *e)
{
    memset(b, 0, sizeof *b);
    b->ws = ws;
    b->err = e;
    b->at_layer = -1;
    b->n_buf = 1;
    b->set[ROWS_ALL] = (struct row_set){"all", 1};
    b->set[ROWS_OUT] = (struct row_set){"out", 1};
    b->n_sets = ROWS_FIRST;
}

void build_free(struct build *b)
{
    free(b->op);
    free(b->buf);
    free(b->slot);
    memset(b, 0, sizeof *b);
}

/* Makes room for element n of a growing list of `size`-byte elements. */
static bool reserve(struct build *b, void *list, int n, int *cap, size_t size)
{
    if (b->err->code) return false;
    if (n < *cap) return true;
    int want = *cap ? 2 * *cap : 64;
    void **p = list;
    void *grown = realloc(*p, size * (size_t)want);
    if (!grown) {
        err_set(b->err, ERR_MEMORY, "no memory for the description of the model");
        return false;
    }
    *p = grown;
    *cap = want;
    return true;
}

static void format_name(char *out, size_t cap, const char *name, int layer)
{
    const char *at = strstr(name, "%d");
    if (at)
        (void)snprintf(out, cap, "%.*s%d%s", (int)(at - name), name, layer, at + 2);
    else
        (void)snprintf(out, cap, "%s", name);
}

static int bind(struct build *b, const char *name, int layer, struct weight_shape s)
{
    char full[96];
    if (b->err->code) return 0;
    format_name(full, sizeof full, name, layer);
    int w = weights_bind(b->ws, s, full, b->err);
    return w < 0 ? 0 : w;
}

int build_tiles(struct build *b, const char *name, int layer, int n_cols, int n_rows, int n_mats)
{
    return bind(b, name, layer,
                (struct weight_shape){WEIGHT_TILES, n_cols, n_rows, n_mats, 0, 0, 0});
}

int build_head_tiles(struct build *b, const char *name, int layer, int n_cols, int n_rows,
                     int n_heads)
{
    if (n_rows % 16)
        err_set(b->err, ERR_UNSUPPORTED, "heads of %d values in %s: steps of 16 are supported",
                n_rows, name);
    return bind(b, name, layer, (struct weight_shape){WEIGHT_TILES, n_cols, n_heads * n_rows, 1, 0,
                                                      0, n_heads});
}

int build_tiles_part(struct build *b, const char *name, int layer, int n_cols, int n_all, int row0,
                     int n_rows, int n_mats)
{
    return bind(b, name, layer,
                (struct weight_shape){WEIGHT_TILES, n_cols, n_rows, n_mats, row0, n_all, 0});
}

int build_vectors(struct build *b, const char *name, int layer, int n, int n_rows)
{
    return bind(b, name, layer, (struct weight_shape){WEIGHT_VECTOR, n, n_rows, 1, 0, 0, 0});
}

int build_rows(struct build *b, const char *name, int n_cols, int n_rows)
{
    return bind(b, name, 0, (struct weight_shape){WEIGHT_ROWS, n_cols, n_rows, 1, 0, 0, 0});
}

int build_vector(struct build *b, const char *name, int layer, int n)
{
    return bind(b, name, layer, (struct weight_shape){WEIGHT_VECTOR, n, 1, 1, 0, 0, 0});
}

bool build_has(const struct build *b, const char *name, int layer)
{
    char full[96];
    format_name(full, sizeof full, name, layer);
    return weights_has(b->ws, full);
}

void build_layer(struct build *b) { b->at_layer = b->n_layer++; }

int build_kv_slot(struct build *b, struct kv_slot slot)
{
    if (!reserve(b, &b->slot, b->n_slot, &b->cap_slot, sizeof *b->slot)) return 0;
    b->slot[b->n_slot] = slot;
    b->slot[b->n_slot].rows = b->rows;
    return b->n_slot++;
}

int build_row_set(struct build *b, const char *name, double share)
{
    if (b->n_sets == ROWS_MAX)
        err_set(b->err, ERR_UNSUPPORTED, "the model needs more than %d row sets", ROWS_MAX);
    if (b->err->code) return ROWS_ALL;
    struct row_set *s = &b->set[b->n_sets];
    (void)snprintf(s->name, sizeof s->name, "%s", name);
    s->share = share;
    return b->n_sets++;
}

static int new_buf(struct build *b, const char *name, enum buf_kind kind, int width)
{
    if (!reserve(b, &b->buf, b->n_buf, &b->cap_buf, sizeof *b->buf)) return 0;
    struct buf *f = &b->buf[b->n_buf];
    memset(f, 0, sizeof *f);
    (void)snprintf(f->name, sizeof f->name, "%s", name);
    f->kind = kind;
    f->rows = b->rows;
    f->width = width;
    f->first = f->last = b->n_op;
    return b->n_buf++;
}

/* Appends an op with no operands. */
static struct op *new_op(struct build *b, enum op_code code, const char *name)
{
    if (!reserve(b, &b->op, b->n_op, &b->cap_op, sizeof *b->op)) return &b->ignored;
    struct op *op = &b->op[b->n_op++];
    memset(op, 0, sizeof *op);
    op->code = code;
    op->lane = LANE_CPU;
    op->rows = b->rows;
    op->layer = b->at_layer;
    op->kv_slot = -1;
    for (int i = 0; i < OP_IO; i++) op->in[i] = op->out[i] = -1;
    for (int i = 0; i < OP_WEIGHTS; i++) op->weight[i] = -1;
    (void)snprintf(op->name, sizeof op->name, "%s", name);
    return op;
}

/* The op just appended touches buffer x. */
static int touch(struct build *b, int x)
{
    if (!b->err->code) b->buf[x].last = b->n_op - 1;
    return x;
}

/* The op just appended changes buffer x: what was prepared of it is out of date. */
static int change(struct build *b, int x)
{
    for (int i = 0; i < ACT_N && !b->err->code; i++) b->buf[x].prepared[i] = 0;
    return touch(b, x);
}

static int width_of(const struct build *b, int x) { return b->err->code ? 0 : b->buf[x].width; }

static const struct weight *weight_of(const struct build *b, int w)
{
    static const struct weight none = {.n_cols = 0};
    return b->err->code ? &none : &b->ws->at[w];
}

int build_embed(struct build *b, const char *name, const char *out_name, int weight)
{
    int x = new_buf(b, out_name, BUF_F32, weight_of(b, weight)->n_cols);
    struct op *op = new_op(b, OP_EMBED, name);
    op->weight[0] = weight;
    op->out[0] = touch(b, x);
    return x;
}

int build_rope_table(struct build *b, struct rope_params p, int divisor)
{
    return build_rope_table_by_ctx(b, p, divisor, -1);
}

int build_rope_table_by_ctx(struct build *b, struct rope_params p, int divisor, int divisor_long)
{
    int x = new_buf(b, "rope", BUF_F32, p.n_rot);
    struct op *op = new_op(b, OP_ROPE_TABLE, "rope");
    op->p.rope.rope = p;
    op->weight[0] = divisor;
    op->weight[1] = divisor_long;
    op->out[0] = touch(b, x);
    return x;
}

int build_norm(struct build *b, const char *name, int in, int weight, float eps)
{
    int x = new_buf(b, name, BUF_F32, width_of(b, in));
    struct op *op = new_op(b, OP_RMS_NORM, name);
    op->p.head.eps = eps;
    op->weight[0] = weight;
    op->in[0] = touch(b, in);
    op->out[0] = touch(b, x);
    return x;
}

/* The form of `in` that weights of a kind take; a step is added the first time. */
static int prepared(struct build *b, int in, enum act_kind kind)
{
    static const char *const names[ACT_N] = {"", ".q8", ".q8k", ".q8s"};
    if (b->err->code || kind == ACT_F32) return in;
    if (b->buf[in].prepared[kind]) return b->buf[in].prepared[kind];
    char name[28];
    (void)snprintf(name, sizeof name, "%s%s", b->buf[in].name, names[kind]);
    int x = new_buf(b, name, BUF_ACT, width_of(b, in));
    if (b->err->code) return 0;
    b->buf[x].act = kind;
    b->buf[x].rows = b->buf[in].rows;
    b->buf[in].prepared[kind] = x;
    struct op *op = new_op(b, OP_PREPARE, b->buf[in].name);
    op->p.prepare.kind = kind;
    op->in[0] = touch(b, in);
    op->out[0] = touch(b, x);
    return x;
}

static enum act_kind act_of(const struct build *b, int weight)
{
    const struct qtype_info *t = qtype_info(weight_of(b, weight)->type);
    return t ? t->act : ACT_F32;
}

void build_linears(struct build *b, const char *name, int in, int n, const int *weight,
                   const char *const *out_name, int *out)
{
    for (int i = 0; i < n; i++) out[i] = 0;
    for (int i = 0, done = 0; done < n && !b->err->code; i = 0) {
        while (out[i]) i++;
        const enum act_kind kind = act_of(b, weight[i]);
        int x = prepared(b, in, kind);
        const int at = b->n_op;
        int k = 0, w[OP_IO], o[OP_IO];
        for (int j = i; j < n; j++) {
            if (out[j] || act_of(b, weight[j]) != kind) continue;
            w[k] = weight[j];
            o[k++] = out[j] = new_buf(b, out_name[j], BUF_F32, weight_of(b, weight[j])->n_rows);
            done++;
        }
        struct op *op = new_op(b, OP_MATMUL, name);
        ASSERT(b->err->code || b->n_op == at + 1);
        op->in[0] = touch(b, x);
        for (int j = 0; j < k; j++) {
            op->weight[j] = w[j];
            op->out[j] = touch(b, o[j]);
        }
    }
}

int build_linear(struct build *b, const char *name, int in, int weight)
{
    int out;
    build_linears(b, name, in, 1, &weight, &name, &out);
    return out;
}

int build_router(struct build *b, const char *step, const char *name, int n, int in)
{
    const int w = build_tiles(b, name, 0, width_of(b, in), n, 1);
    if (!b->err->code && qtype_info(b->ws->at[w].type)->block > 1)
        err_set(b->err, ERR_UNSUPPORTED, "tensor %s is quantised: what decides which layers see a token "
                "stays F32, or F16 or BF16 at least", name);
    return build_linear(b, step, in, w);
}

int build_fill(struct build *b, const char *name, int width, int at, int weight)
{
    const int x = new_buf(b, name, BUF_F32, width);
    struct op *op = new_op(b, OP_FILL, name);
    op->p.bias.at = at;
    op->weight[0] = weight;
    op->out[0] = touch(b, x);
    return x;
}

int build_attention(struct build *b, int q, int kv_slot, int n_q_heads, float scale, int window,
                    int sinks)
{
    if (b->err->code) return 0;
    const struct kv_slot *s = &b->slot[kv_slot];
    const int dim_v = s->dim_v ? s->dim_v : s->dim;
    int x = new_buf(b, "attn", BUF_F32, n_q_heads * dim_v);
    struct op *op = new_op(b, OP_ATTENTION, "attention");
    op->kv_slot = kv_slot;
    op->kv_rows = s->rows;
    if (b->sees && (window || s->rows != ROWS_ALL))
        err_set(b->err, ERR_UNSUPPORTED, "attention that looks ahead, with a window or on the rows of "
                "set %s", b->set[s->rows].name);
    op->p.attn.n_q_heads = n_q_heads;
    op->p.attn.n_kv_heads = s->n_heads;
    op->p.attn.dim = s->dim;
    op->p.attn.dim_v = dim_v;
    op->p.attn.dk = s->dk;
    op->p.attn.dv = s->dv;
    op->p.attn.latent = s->latent;
    op->p.attn.scale = scale;
    op->p.attn.window = window;
    op->p.attn.sees = b->sees;
    op->weight[0] = sinks;
    op->in[0] = touch(b, q);
    op->out[0] = touch(b, x);
    return x;
}

int build_select(struct build *b, const char *name, int in)
{
    int x = new_buf(b, name, BUF_F32, width_of(b, in));
    struct op *op = new_op(b, OP_SELECT, name);
    op->in[0] = touch(b, in);
    op->out[0] = touch(b, x);
    return x;
}

void build_scatter(struct build *b, const char *name, int in, int into, int gate, int column,
                   float by)
{
    struct op *op = new_op(b, OP_SCATTER, name);
    op->p.scatter.by = by;
    op->p.scatter.column = column;
    op->in[0] = touch(b, in);
    if (gate >= 0) op->in[1] = touch(b, gate);
    op->out[0] = change(b, into);
}

void build_put(struct build *b, const char *name, int in, int into, int gate, int column)
{
    build_scatter(b, name, in, into, gate, column, 1);
    if (!b->err->code) b->op[b->n_op - 1].p.scatter.put = 1;
}

int build_depth(struct build *b, const char *name, int logits, int values, int width,
                struct depth_params p)
{
    int x = width ? new_buf(b, "depth", BUF_F32, width) : 0;
    struct op *op = new_op(b, OP_DEPTH, name);
    op->p.depth = p;
    op->in[0] = touch(b, logits);
    if (values) op->in[1] = touch(b, values);
    if (width) op->out[0] = touch(b, x);
    return x;
}

/* A vector that a session keeps between steps. */
static int vector_slot(struct build *b, int width)
{
    return build_kv_slot(b, (struct kv_slot){.type = KV_SLOT_RECURRENT, .dim = width, .dim_v = 1});
}

int build_boundary(struct build *b, const char *name, int mine, int before, struct depth_params p)
{
    const int slot = vector_slot(b, width_of(b, before)), x = build_depth(b, name, mine, before, 1, p);
    if (!b->err->code) b->op[b->n_op - 1].kv_slot = slot;
    b->has_chances |= b->rows == ROWS_ALL;
    return x;
}

int build_span(struct build *b, const char *name, int in, int set)
{
    const int x = new_buf(b, name, BUF_F32, width_of(b, in));
    struct op *op = new_op(b, OP_SPAN, name);
    op->p.span.set = set;
    op->in[0] = touch(b, in);
    op->out[0] = touch(b, x);
    op->kv_slot = vector_slot(b, width_of(b, in));
    return x;
}

int build_smooth(struct build *b, const char *name, int in, int chance, float margin)
{
    const int x = new_buf(b, name, BUF_F32, width_of(b, in));
    struct op *op = new_op(b, OP_SMOOTH, name);
    op->p.smooth.margin = margin;
    op->in[0] = touch(b, in);
    op->in[1] = touch(b, chance);
    op->out[0] = touch(b, x);
    op->kv_slot = vector_slot(b, width_of(b, in));
    return x;
}

void build_foresee(struct build *b, int x)
{
    struct op *op = new_op(b, OP_FORESEE, "foresee");
    op->in[0] = touch(b, x);
}

void build_kv_carry(struct build *b, int first, int n, int step, int from)
{
    if (b->err->code) return;
    const struct kv_slot *s = &b->slot[first];
    ASSERT(first + step * n <= b->n_slot && !s->latent);
    struct op *op = new_op(b, OP_KV_CARRY, "kv_carry");
    op->kv_slot = first;
    op->kv_rows = s->rows;
    op->p.carry.n_kv_heads = s->n_heads;
    op->p.carry.dk = s->dk;
    op->p.carry.dv = s->dv;
    op->p.carry.n = n;
    op->p.carry.step = step;
    op->p.carry.from = from;
}

int build_glu(struct build *b, enum glu_act act, int gate, int up)
{
    int x = new_buf(b, "ffn_act", BUF_F32, width_of(b, gate));
    struct op *op = new_op(b, OP_GLU, "ffn_act");
    op->p.glu.act = act;
    op->in[0] = touch(b, gate);
    op->in[1] = touch(b, up);
    op->out[0] = touch(b, x);
    return x;
}

int build_experts(struct build *b, int in, int logits, const struct build_moe *m)
{
    const struct route_params p = m->route;
    int route = new_buf(b, "route", BUF_ROUTE, p.n_expert);
    struct op *op = new_op(b, p.choice.k_max ? OP_CHOOSE : OP_ROUTE, "ffn_route");
    op->p.moe.route = p;
    op->weight[0] = m->choose_bias;
    op->weight[1] = m->scale;
    op->in[0] = touch(b, logits);
    op->out[0] = touch(b, route);
    if (!b->err->code && act_of(b, m->gate) != act_of(b, m->up))
        err_set(b->err, ERR_UNSUPPORTED,
                "%s and %s have types with different activation formats: requantise the file",
                weight_of(b, m->gate)->name, weight_of(b, m->up)->name);
    int x = prepared(b, in, act_of(b, m->gate));
    int scratch = new_buf(b, "pairs", BUF_SCRATCH, width_of(b, in));
    int y = new_buf(b, "ffn_out", BUF_F32, width_of(b, in));
    op = new_op(b, OP_EXPERTS, "ffn_experts");
    if (b->err->code) return 0;
    struct buf *r = &b->buf[route], *s = &b->buf[scratch];
    r->route = s->route = p;
    s->n_ff = op->p.moe.n_ff = weight_of(b, m->gate)->n_rows;
    s->down = act_of(b, m->down);
    op->p.moe.route = p;
    op->p.moe.act = m->act;
    op->weight[0] = m->gate;
    op->weight[1] = m->up;
    op->weight[2] = m->down;
    for (int i = 0; i < 3; i++) op->weight[OP_IO + i] = m->bias[i];
    op->in[0] = touch(b, x);
    op->in[1] = touch(b, route);
    op->in[2] = touch(b, scratch);
    op->out[0] = touch(b, y);
    return y;
}

int build_logits(struct build *b, int in, int weight)
{
    int out = build_linear(b, "output", in, weight);
    if (!b->err->code) {
        b->buf[out].kind = BUF_LOGITS;
        b->n_vocab = b->buf[out].width;
    }
    return out;
}

void build_head_norm(struct build *b, const char *name, int x, int weight, int n_heads, int dim,
                     float eps)
{
    struct op *op = new_op(b, OP_HEAD_NORM, name);
    op->p.head.n_heads = n_heads;
    op->p.head.dim = dim;
    op->p.head.eps = eps;
    op->weight[0] = weight;
    op->in[0] = op->out[0] = change(b, x);
}

void build_rope(struct build *b, const char *name, int x, int table, int n_heads, int dim,
                struct rope_params p)
{
    build_rope_at(b, name, x, table, n_heads, dim, 0, p);
}

void build_rope_at(struct build *b, const char *name, int x, int table, int n_heads, int dim,
                   int at, struct rope_params p)
{
    struct op *op = new_op(b, OP_ROPE, name);
    op->p.rope.n_heads = n_heads;
    op->p.rope.dim = dim;
    op->p.rope.at = at;
    op->p.rope.rope = p;
    op->in[0] = op->out[0] = change(b, x);
    op->in[1] = touch(b, table);
}

int build_heads(struct build *b, const char *name, int n_heads, int dim)
{
    return new_buf(b, name, BUF_F32, n_heads * dim);
}

void build_head_linear(struct build *b, const char *name, int in, int stride_in, int weight,
                       int n_heads, int out, int stride_out)
{
    const enum act_kind kind = act_of(b, weight);
    const int dim = weight_of(b, weight)->n_cols;
    int x = new_buf(b, name, BUF_ACT, dim);
    if (b->err->code) return;
    b->buf[x].act = kind;
    b->buf[x].n_heads = n_heads;
    struct op *op = new_op(b, OP_HEAD_PREPARE, b->buf[in].name);
    op->p.prepare.kind = kind;
    op->p.prepare.n_heads = n_heads;
    op->p.prepare.dim = dim;
    op->p.prepare.stride = stride_in;
    op->in[0] = touch(b, in);
    op->out[0] = touch(b, x);
    op = new_op(b, OP_HEAD_MATMUL, name);
    op->p.heads.n_heads = n_heads;
    op->p.heads.stride = stride_out;
    op->weight[0] = weight;
    op->in[0] = touch(b, x);
    op->out[0] = change(b, out);
}

void build_copy_heads(struct build *b, const char *name, int in, int out, struct copy_heads p)
{
    struct op *op = new_op(b, OP_COPY_HEADS, name);
    op->p.copy = p;
    op->in[0] = touch(b, in);
    op->out[0] = change(b, out);
}

void build_kv_put(struct build *b, int k, int v, int kv_slot)
{
    if (b->err->code) return;
    struct op *op = new_op(b, OP_KV_PUT, "kv_put");
    op->kv_slot = kv_slot;
    op->kv_rows = b->slot[kv_slot].rows;
    op->p.attn.n_kv_heads = b->slot[kv_slot].n_heads;
    op->p.attn.dim = b->slot[kv_slot].dim;
    op->p.attn.dim_v = b->slot[kv_slot].dim_v ? b->slot[kv_slot].dim_v : b->slot[kv_slot].dim;
    op->p.attn.dk = b->slot[kv_slot].dk;
    op->p.attn.dv = b->slot[kv_slot].dv;
    op->p.attn.latent = b->slot[kv_slot].latent;
    op->in[0] = touch(b, k);
    op->in[1] = touch(b, v);
}

void build_add(struct build *b, const char *name, int in, int into)
{
    struct op *op = new_op(b, OP_ADD, name);
    op->in[0] = touch(b, in);
    op->out[0] = change(b, into);
}

void build_bias(struct build *b, const char *name, int into, int weight)
{
    build_bias_at(b, name, into, weight, 0);
}

void build_bias_at(struct build *b, const char *name, int into, int weight, int at)
{
    struct op *op = new_op(b, OP_ADD_BIAS, name);
    op->p.bias.at = at;
    op->weight[0] = weight;
    op->in[0] = op->out[0] = change(b, into);
}

void build_scale(struct build *b, const char *name, int into, float by)
{
    struct op *op = new_op(b, OP_SCALE, name);
    op->p.scale.by = by;
    op->in[0] = op->out[0] = change(b, into);
}

void build_scale_by(struct build *b, const char *name, int into, int weight)
{
    struct op *op = new_op(b, OP_SCALE, name);
    op->p.scale.by = 1;
    op->weight[0] = weight;
    op->in[0] = op->out[0] = change(b, into);
}

void build_softcap(struct build *b, int into, float cap)
{
    struct op *op = new_op(b, OP_SOFTCAP, "softcap");
    op->p.scale.by = cap;
    op->in[0] = op->out[0] = change(b, into);
}

void build_gate(struct build *b, const char *name, int gate, int into)
{
    struct op *op = new_op(b, OP_GATE, name);
    op->in[0] = touch(b, gate);
    op->out[0] = change(b, into);
}

/* ---- recurrent layers ---- */

void build_mul(struct build *b, const char *name, int in, int into)
{
    struct op *op = new_op(b, OP_MUL, name);
    op->in[0] = touch(b, in);
    op->out[0] = change(b, into);
}

void build_l2_norm(struct build *b, const char *name, int x, int n_heads, int dim, float eps)
{
    struct op *op = new_op(b, OP_L2_NORM, name);
    op->p.head.n_heads = n_heads;
    op->p.head.dim = dim;
    op->p.head.eps = eps;
    op->in[0] = op->out[0] = change(b, x);
}

void build_conv(struct build *b, int x, int kernel, int taps, bool silu, int kv_slot)
{
    ASSERT(b->rows == ROWS_ALL);
    struct op *op = new_op(b, OP_CONV, "conv");
    op->p.conv.taps = taps;
    op->p.conv.silu = silu;
    op->kv_slot = kv_slot;
    op->weight[0] = kernel;
    op->in[0] = op->out[0] = change(b, x);
}

void build_delta_gates(struct build *b, int decay, int beta, int dt, int a)
{
    struct op *op = new_op(b, OP_DELTA_GATES, "delta_gates");
    op->weight[0] = dt;
    op->weight[1] = a;
    op->in[0] = op->out[0] = change(b, decay);
    op->in[1] = op->out[1] = change(b, beta);
}

int build_delta(struct build *b, int qkv, int decay, int beta, int n_k, bool tiled, int kv_slot)
{
    ASSERT(b->rows == ROWS_ALL);
    if (b->err->code) return 0;
    const struct kv_slot *s = &b->slot[kv_slot];
    uint64_t at;
    (void)dev_state_bytes(s, &at);
    int x = new_buf(b, "delta", BUF_F32, s->n_heads * s->dv);
    struct op *op = new_op(b, OP_DELTA, "delta");
    op->p.delta.n_k = n_k;
    op->p.delta.n_v = s->n_heads;
    op->p.delta.dk = s->dk;
    op->p.delta.dv = s->dv;
    op->p.delta.tiled = tiled;
    op->p.delta.at = (unsigned)at;
    op->kv_slot = kv_slot;
    op->in[0] = touch(b, qkv);
    op->in[1] = touch(b, decay);
    op->in[2] = touch(b, beta);
    op->out[0] = touch(b, x);
    return x;
}
