/* See convert.h: deciding.  Writing is convert_write.c's. */
#include "quant/build/convert.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static enum status no_memory(struct err *e)
{
    return err_set(e, ERR_MEMORY, "no memory for the list of tensors");
}

/* ---- names ---- */

enum { NAME_ROOM = 256 };

/* Puts the layer for # and @, the expert for *. */
static void fill(char out[NAME_ROOM], const char *pattern, const char *layer, int expert,
                 const char *tail)
{
    size_t n = 0;
    for (const char *p = pattern; *p && n < NAME_ROOM; p++) {
        if (*p == '#' || *p == '@')
            n += (size_t)snprintf(out + n, NAME_ROOM - n, "%s", layer);
        else if (*p == '*')
            n += (size_t)snprintf(out + n, NAME_ROOM - n, "%d", expert);
        else
            out[n++] = *p;
    }
    ASSERT(n + strlen(tail) < NAME_ROOM);
    memcpy(out + n, tail, strlen(tail) + 1);
}

/* What a tensor is called in the file that is written: recursions count from 1. */
static void fill_to(char out[NAME_ROOM], const struct hf_row *r, int layer)
{
    char number[16];
    (void)snprintf(number, sizeof number, "%d", strchr(r->to, '@') ? layer + 1 : layer);
    fill(out, r->to, number, 0, "");
}

/* And in the checkpoint, where a layer may have copies; false: no such copy. */
static bool fill_from(const struct hf_model *m, char out[NAME_ROOM], const struct hf_row *r,
                      int layer, int copy, int expert, const char *tail)
{
    char name[32];
    bool there = copy == 0;
    if (strchr(r->to, '@')) (void)snprintf(name, sizeof name, "%d", m->first + layer);
    else there = hf_layer_name(m, layer, copy, name);
    fill(out, r->from, name, expert, tail);
    return there;
}

static bool ends_with(const char *s, const char *tail)
{
    const size_t n = strlen(s), k = strlen(tail);
    return n >= k && !strcmp(s + n - k, tail);
}

static const struct st_tensor *take(struct convert *c, const char *name)
{
    const struct st_tensor *t = st_find(c->st, name);
    if (t) c->used[t - st_at(c->st, 0)] = true;
    return t;
}

/* ---- shapes ---- */

static enum status bad_shape(const struct convert *c, const struct st_tensor *s, const char *what,
                             struct err *e)
{
    return err_set(
        e, ERR_SHAPE, "%s: tensor %.100s [%" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 "] %s",
        st_path(c->st, s->shard), s->name, s->dim[0], s->dim[1], s->dim[2], s->dim[3], what);
}

static bool is_mxfp4(enum hf_op op)
{
    return op == HF_MXFP4 || op == HF_MXFP4_EVEN || op == HF_MXFP4_ODD;
}

/* The last dimensions of the source are the matrix, the others count matrices. */
static void as_it_is(struct convert_tensor *t, const struct st_tensor *s)
{
    t->n_dims = s->n_dims ? s->n_dims : 1;
    t->n_cols = s->n_dims ? s->dim[s->n_dims - 1] : 1;
    t->n_rows = s->n_dims > 1 ? s->dim[s->n_dims - 2] : 1;
    t->n_mats = s->n_dims > 2 ? s->dim[0] * (s->n_dims > 3 ? s->dim[1] : 1) : 1;
    t->row_step = t->n_cols;
    t->col_step = 1;
    t->mat_step = t->n_rows * t->n_cols;
}

/* [mats][rows][cols] out of a source whose three dimensions are given. */
static void three(struct convert_tensor *t, uint64_t mats, uint64_t rows, uint64_t cols)
{
    t->n_dims = 3;
    t->n_mats = mats;
    t->n_rows = rows;
    t->n_cols = cols;
}

static enum status turned(const struct convert *c, struct convert_tensor *t,
                          const struct st_tensor *s, uint64_t every, uint64_t first, struct err *e)
{
    if (s->n_dims != 3 || s->dim[2] % every) return bad_shape(c, s, "are no turned experts", e);
    three(t, s->dim[0], s->dim[2] / every, s->dim[1]);
    t->off = first;
    t->row_step = every;
    t->col_step = s->dim[2];
    t->mat_step = s->dim[1] * s->dim[2];
    return OK;
}

static enum status half_rows(const struct convert *c, struct convert_tensor *t,
                             const struct st_tensor *s, uint64_t half, struct err *e)
{
    if (s->n_dims != 3 || s->dim[1] % 2)
        return bad_shape(c, s, "are no experts with gate and up on top of each other", e);
    three(t, s->dim[0], s->dim[1] / 2, s->dim[2]);
    t->off = half * t->n_rows * t->n_cols;
    t->row_step = t->n_cols;
    t->col_step = 1;
    t->mat_step = s->dim[1] * s->dim[2];
    return OK;
}

static enum status half_cols(const struct convert *c, struct convert_tensor *t,
                             const struct st_tensor *s, uint64_t first, struct err *e)
{
    if (s->n_dims != 2 || s->dim[1] % 2) return bad_shape(c, s, "are no biases of two kinds", e);
    as_it_is(t, s);
    t->n_cols /= 2;
    t->off = first;
    t->col_step = 2;
    return OK;
}

static enum status kv_b(const struct convert *c, struct convert_tensor *t,
                        const struct st_tensor *s, struct err *e)
{
    const struct hf_model *m = &c->model;
    const uint64_t heads = (uint64_t)m->n_head, k = (uint64_t)m->dim_nope, v = (uint64_t)m->dim_v;
    if (s->n_dims != 2 || s->dim[0] != heads * (k + v))
        return bad_shape(c, s, "does not fit num_attention_heads * (qk_nope_head_dim + v_head_dim)",
                         e);
    const uint64_t rank = s->dim[1];
    t->mat_step = (k + v) * rank;
    if (t->row->op == HF_K_B) {
        three(t, heads, rank, k);
        t->row_step = 1;
        t->col_step = rank;
    } else {
        three(t, heads, v, rank);
        t->off = k * rank;
        t->row_step = rank;
        t->col_step = 1;
    }
    return OK;
}

/* The rows of each head, first half above second half, become pairs. */
static enum status pairs(const struct convert *c, struct convert_tensor *t,
                         const struct st_tensor *s, int n_heads, struct err *e)
{
    const uint64_t dim = (uint64_t)c->model.head_dim;
    as_it_is(t, s);
    if (s->n_dims == 1) { /* a bias: a column of rows */
        t->n_rows = t->n_cols;
        t->n_cols = t->row_step = 1;
    }
    if (s->n_dims < 1 || s->n_dims > 2 || dim % 2 || t->n_rows != dim * (uint64_t)n_heads)
        return bad_shape(c, s, "does not fit the heads that config.json has", e);
    t->head_rows = dim;
    return OK;
}

static enum status experts(const struct convert *c, struct convert_tensor *t, struct err *e)
{
    const struct st_tensor *const *src = c->src + t->first_src;
    if (src[0]->n_dims != 2) return bad_shape(c, src[0], "is no matrix", e);
    for (uint32_t i = 1; i < t->n_src; i++)
        if (src[i]->n_dims != 2 || src[i]->dim[0] != src[0]->dim[0] ||
            src[i]->dim[1] != src[0]->dim[1] || src[i]->type != src[0]->type)
            return bad_shape(c, src[i], "differs from the first expert's", e);
    as_it_is(t, src[0]);
    three(t, t->n_src, t->n_rows, t->n_cols);
    t->mat_step = 0;
    return OK;
}

static enum status mxfp4(const struct convert *c, struct convert_tensor *t,
                         const struct st_tensor *s, struct err *e)
{
    const struct st_tensor *x = t->scales;
    const uint64_t every = t->row->op == HF_MXFP4 ? 1 : 2;
    if (s->type != ST_U8 || s->n_dims != 4 || s->dim[3] != 16 || s->dim[1] % every ||
        x->type != ST_U8 || x->n_dims != 3 || x->dim[0] != s->dim[0] || x->dim[1] != s->dim[1] ||
        x->dim[2] != s->dim[2] || s->dim[2] > UINT64_MAX / 64)
        return bad_shape(c, s, "and its scales are no MXFP4 blocks", e);
    three(t, s->dim[0], s->dim[1] / every, s->dim[2] * 32);
    t->off = t->row->op == HF_MXFP4_ODD ? s->dim[2] : 0;
    t->row_step = every * s->dim[2];
    t->col_step = 1;
    t->mat_step = s->dim[1] * s->dim[2];
    return OK;
}

static enum status shape(const struct convert *c, struct convert_tensor *t, struct err *e)
{
    const struct st_tensor *s = t->n_src ? c->src[t->first_src] : NULL;
    switch (t->row->op) {
    case HF_AS_IS: as_it_is(t, s); return OK;
    case HF_PAIRS_Q: return pairs(c, t, s, c->model.n_head, e);
    case HF_PAIRS_KV: return pairs(c, t, s, c->model.n_kv_head, e);
    case HF_EXPERTS: return experts(c, t, e);
    case HF_FIRST_ROWS: return half_rows(c, t, s, 0, e);
    case HF_LAST_ROWS: return half_rows(c, t, s, 1, e);
    case HF_EVEN_COLS: return half_cols(c, t, s, 0, e);
    case HF_ODD_COLS: return half_cols(c, t, s, 1, e);
    case HF_TURNED: return turned(c, t, s, 1, 0, e);
    case HF_TURNED_EVEN: return turned(c, t, s, 2, 0, e);
    case HF_TURNED_ODD: return turned(c, t, s, 2, 1, e);
    case HF_K_B:
    case HF_V_B: return kv_b(c, t, s, e);
    case HF_MXFP4:
    case HF_MXFP4_EVEN:
    case HF_MXFP4_ODD: return mxfp4(c, t, s, e);
    case HF_ROPE_FREQS:
        t->n_dims = 1;
        t->n_mats = t->n_rows = 1;
        t->n_cols = (uint64_t)c->model.n_rope_freqs;
        return OK;
    }
    return OK;
}

/* ---- types ---- */

/* Vectors, norms, biases and routers stay exact. */
static enum qtype type_of(const struct convert *c, const struct convert_tensor *t)
{
    static const enum qtype types[] = {
        [CONVERT_F32] = QTYPE_F32, [CONVERT_F16] = QTYPE_F16, [CONVERT_BF16] = QTYPE_BF16,
        [CONVERT_Q8_0] = QTYPE_Q8_0,
    };
    if (is_mxfp4(t->row->op)) return QTYPE_MXFP4;
    if (t->n_dims <= 1 || !ends_with(t->name, ".weight") || ends_with(t->name, "_norm.weight") ||
        ends_with(t->name, "ffn_gate_inp.weight") ||
        ends_with(t->name, "ffn_gate_inp_shexp.weight") || !strcmp(t->name, "exit_gate.weight") ||
        !strncmp(t->name, "rec.", 4))
        return QTYPE_F32;
    if (c->type == CONVERT_Q8_0 && t->n_cols % 32) return QTYPE_F16;
    return types[c->type];
}

static enum status check_source(const struct convert *c, const struct convert_tensor *t,
                                struct err *e)
{
    for (uint32_t i = 0; i < t->n_src; i++) {
        const struct st_tensor *s = c->src[t->first_src + i];
        const bool fp8 = s->type == ST_F8_E4M3;
        if (s->type == ST_OTHER || (s->type == ST_U8) != is_mxfp4(t->row->op) ||
            (fp8 && !c->model.fp8))
            return err_set(e, ERR_UNSUPPORTED, "%s: tensor %.100s has type %.20s, which cannot be "
                           "converted here", st_path(c->st, s->shard), s->name, s->type_name);
        if (!s->bytes) return bad_shape(c, s, "is empty", e);
    }
    return OK;
}

static enum status finish_tensor(struct convert *c, struct convert_tensor *t, struct err *e)
{
    enum status s = check_source(c, t, e);
    if (!s) s = shape(c, t, e);
    if (s) return s;
    for (int i = 0; i < GGUF_DIMS; i++) t->dim[i] = 1;
    if (t->n_dims == 1) {
        t->dim[0] = t->n_rows * t->n_cols;
    } else if (t->n_dims > 3) {
        return bad_shape(c, c->src[t->first_src], "has more dimensions than any weight", e);
    } else {
        t->dim[0] = t->n_cols;
        t->dim[1] = t->n_rows;
        t->dim[2] = t->n_mats;
    }
    t->type = type_of(c, t);
    t->bytes = qtype_bytes(t->type, t->n_mats * t->n_rows * t->n_cols);
    c->bytes_out += t->bytes;
    return OK;
}

/* ---- rows ---- */

static bool applies(const struct hf_model *m, const struct hf_row *r, int layer)
{
    const bool moe = layer >= m->n_dense_lead;
    switch (r->when) {
    case HF_MUST:
    case HF_MAY: return r->op != HF_ROPE_FREQS || m->n_rope_freqs > 0;
    case HF_UNTIED: return !m->tied;
    case HF_DENSE: return !moe;
    case HF_MOE:
    case HF_MOE_MAY: return moe;
    case HF_SHARED: return moe && m->n_shared > 0;
    case HF_ROUTED:
    case HF_ROUTED_MAY: return m->wrapped;
    case HF_PLAIN_Q: return !m->latent_q;
    case HF_LATENT_Q: return m->latent_q;
    }
    return false;
}

static enum status add_source(struct convert *c, const struct st_tensor *s, struct err *e)
{
    if (c->n_src == c->cap_src) {
        const uint32_t cap = c->cap_src ? c->cap_src * 2 : 256;
        const struct st_tensor **p = realloc(c->src, cap * sizeof *p);
        if (!p) return no_memory(e);
        c->src = p;
        c->cap_src = cap;
    }
    c->src[c->n_src++] = s;
    return OK;
}

static enum status same_bytes(const struct convert *c, const struct st_tensor *a,
                              const struct st_tensor *b, struct err *e)
{
    enum { PIECE = 1 << 20 };
    bool same = a->type == b->type && a->bytes == b->bytes;
    char *buf = malloc(2 * PIECE);
    enum status s = buf ? OK : no_memory(e);
    for (uint64_t at = 0; same && !s && at < a->bytes; at += PIECE) {
        const uint64_t n = a->bytes - at < PIECE ? a->bytes - at : PIECE;
        s = st_read(c->st, a, buf, n, at, e);
        if (!s) s = st_read(c->st, b, buf + PIECE, n, at, e);
        same = s || !memcmp(buf, buf + PIECE, (size_t)n);
    }
    free(buf);
    if (s || same) return s;
    return err_set(e, ERR_UNSUPPORTED, "%s: tensors %.100s and %.100s should be one and the same, but "
                   "differ: a relaxed recursive model, which is not supported",
                   st_path(c->st, b->shard), a->name, b->name);
}

/* Layers that share their weights are stored once for each time that they run: all alike. */
static enum status check_copies(struct convert *c, const struct convert_tensor *t, int layer,
                                struct err *e)
{
    char name[NAME_ROOM];
    const struct st_tensor *first = c->src[t->first_src];
    enum status s = OK;
    if (!strchr(t->row->to, '#') || t->row->op == HF_EXPERTS) return OK;
    for (int copy = 1; !s && fill_from(&c->model, name, t->row, layer, copy, 0, ""); copy++) {
        const struct st_tensor *other = take(c, name);
        if (!other)
            return err_set(e, ERR_MISSING, "%s: tensor %.200s is missing", c->opt.dir, name);
        s = same_bytes(c, first, other, e);
    }
    return s;
}

/* The sources of a row; *found false when the checkpoint has another form. */
static enum status find_sources(struct convert *c, struct convert_tensor *t, int layer, bool *found,
                                struct err *e)
{
    const struct hf_row *r = t->row;
    char name[NAME_ROOM];
    *found = r->op == HF_ROPE_FREQS;
    if (*found) return OK;
    const int n = r->op == HF_EXPERTS ? c->model.n_expert : 1;
    (void)fill_from(&c->model, name, r, layer, 0, 0, is_mxfp4(r->op) ? "_blocks" : "");
    if (!st_find(c->st, name)) return OK;
    *found = true;
    t->first_src = c->n_src;
    for (int i = 0; i < n; i++) {
        (void)fill_from(&c->model, name, r, layer, 0, i, is_mxfp4(r->op) ? "_blocks" : "");
        const struct st_tensor *s = take(c, name);
        if (!s) return err_set(e, ERR_MISSING, "%s: tensor %.200s is missing", c->opt.dir, name);
        enum status st = add_source(c, s, e);
        if (st) return st;
        t->n_src++;
    }
    enum status tied = check_copies(c, t, layer, e);
    if (tied || !is_mxfp4(r->op)) return tied;
    (void)fill_from(&c->model, name, r, layer, 0, 0, "_scales");
    t->scales = take(c, name);
    return t->scales ? OK
                     : err_set(e, ERR_MISSING, "%s: tensor %.200s is missing", c->opt.dir, name);
}

/* The forms of one tensor, rows r .. end: the first that is there. */
static enum status add_tensor(struct convert *c, const struct hf_row *r, const struct hf_row *end,
                              int layer, struct err *e)
{
    char name[NAME_ROOM];
    const struct hf_row *const first = r;
    if (c->n == c->cap) {
        const uint32_t cap = c->cap ? c->cap * 2 : 64;
        struct convert_tensor *p = realloc(c->tensor, cap * sizeof *p);
        if (!p) return no_memory(e);
        c->tensor = p;
        c->cap = cap;
    }
    for (; r < end; r++) {
        struct convert_tensor *t = &c->tensor[c->n];
        bool found;
        memset(t, 0, sizeof *t);
        t->row = r;
        fill_to(name, r, layer);
        (void)snprintf(t->name, sizeof t->name, "%.63s", name);
        enum status s = find_sources(c, t, layer, &found, e);
        if (s) return s;
        if (!found) continue;
        c->n++;
        return finish_tensor(c, t, e);
    }
    if (first->when == HF_MAY || first->when == HF_MOE_MAY || first->when == HF_ROUTED_MAY) return OK;
    (void)fill_from(&c->model, name, first, layer, 0, 0, "");
    return err_set(e, ERR_MISSING,
                   "%s: tensor %.200s is missing: is the checkpoint complete, and its config.json "
                   "its own?",
                   c->opt.dir, name);
}

/* mark: '#' rows of layers, '@' of recursions, 0 the others. */
static enum status add_rows(struct convert *c, char mark, int layer, struct err *e)
{
    enum status s = OK;
    for (const struct hf_row *r = c->model.arch->rows, *end; r->to && !s; r = end) {
        for (end = r + 1; end->to && !strcmp(end->to, r->to);) end++;
        const char *marked = strpbrk(r->to, "#@");
        if ((marked ? *marked : 0) != mark) continue;
        if (applies(&c->model, r, layer)) s = add_tensor(c, r, end, layer, e);
    }
    return s;
}

/* Scales belong to the tensors that they scale. */
static void take_scales(struct convert *c)
{
    char name[NAME_ROOM + 16];
    for (uint32_t i = 0; i < c->n_src; i++) {
        if (c->src[i]->type != ST_F8_E4M3) continue;
        (void)snprintf(name, sizeof name, "%.255s_scale_inv", c->src[i]->name);
        (void)take(c, name);
    }
}

static enum status check_all_used(struct convert *c, struct err *e)
{
    for (uint64_t i = 0; i < st_n(c->st); i++) {
        const struct st_tensor *t = st_at(c->st, i);
        if (c->used[i]) {
            c->bytes_in += t->bytes;
        } else if (hf_is_ignored(&c->model, t->name)) {
            c->n_ignored++;
            c->bytes_ignored += t->bytes;
        } else {
            return err_set(e, ERR_UNSUPPORTED, "%s: tensor %.200s is not part of %s as it is known "
                           "here: leaving it out could change what the model says",
                           st_path(c->st, t->shard), t->name, c->model.arch->name);
        }
    }
    return OK;
}

/* ---- keys ---- */

/* Capital letters for words without any: "qwen3-0.6b-moe" -> "Qwen3 0.6b Moe". */
static void title(char *s)
{
    for (char *p = s; *p; p++)
        if (*p == '-') *p = ' ';
    for (size_t n; *s; s += n + (s[n] == ' ')) {
        bool upper = isdigit((unsigned char)*s);
        n = strcspn(s, " ");
        for (size_t i = 0; i < n; i++) upper |= isupper((unsigned char)s[i]) != 0;
        for (size_t i = 0; i < n && !upper; i++)
            if (!i || !isalpha((unsigned char)s[i - 1])) s[i] = (char)toupper((unsigned char)s[i]);
    }
}

static void put_name(struct convert *c)
{
    char name[128];
    if (c->opt.name) {
        gguf_put_str(c->w, "general.name", c->opt.name);
        return;
    }
    const char *dir = c->opt.dir;
    size_t n = strlen(dir);
    while (n && dir[n - 1] == '/') n--;
    size_t at = n;
    while (at && dir[at - 1] != '/') at--;
    (void)snprintf(name, sizeof name, "%.*s", (int)(n - at < 120 ? n - at : 120), dir + at);
    title(name);
    if (*name && strcmp(name, ".")) gguf_put_str(c->w, "general.name", name);
}

/* "8x7B": experts, and what each token passes of the rest and of one expert; or all weights. */
static void put_size(struct convert *c)
{
    static const char units[] = "KMBT";
    double shared = 0, one = 0, all = 0;
    uint64_t counts = 0, n_counts = 0;
    char text[48];
    for (uint32_t i = 0; i < c->n; i++) {
        const struct convert_tensor *t = &c->tensor[i];
        const double size = (double)t->n_mats * (double)t->n_rows * (double)t->n_cols;
        all += size;
        if (t->n_dims < 3 || !strstr(t->name, "_exps.")) {
            shared += size;
        } else {
            one += size / (double)t->n_mats;
            counts += t->n_mats;
            n_counts++;
        }
    }
    double v = (n_counts ? shared + one : all) / 1000;
    int u = 0;
    while (v > 1000 && units[u + 1]) {
        v /= 1000;
        u++;
    }
    const char *fmt = v < 9.5 ? "%s%.1f%c" : "%s%.0f%c";
    char experts[24] = "";
    if (n_counts) (void)snprintf(experts, sizeof experts, "%" PRIu64 "x", counts / n_counts);
    (void)snprintf(text, sizeof text, fmt, experts, v, units[u]);
    gguf_put_str(c->w, "general.size_label", text);
}

/* What the makers recommend for sampling. */
static void put_sampling(struct convert *c)
{
    static const struct { const char *from, *to; } floats[] = {
        {"top_p", "general.sampling.top_p"}, {"min_p", "general.sampling.min_p"},
        {"temperature", "general.sampling.temp"},
    };
    uint64_t k;
    if (jf_u64(jf_get(c->generation, "top_k"), &k) && k <= INT32_MAX)
        gguf_put_i32(c->w, "general.sampling.top_k", (int32_t)k);
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        const cJSON *v = jf_get(c->generation, floats[i].from);
        if (cJSON_IsNumber(v)) gguf_put_f32(c->w, floats[i].to, (float)v->valuedouble);
    }
}

static void put_general(struct convert *c)
{
    static const uint32_t file_types[] = {
        [CONVERT_F32] = 0, [CONVERT_F16] = 1, [CONVERT_BF16] = 32, [CONVERT_Q8_0] = 7,
    };
    const bool mx = c->model.mxfp4 && c->type != CONVERT_Q8_0;
    gguf_put_str(c->w, "general.type", "model");
    put_name(c);
    put_size(c);
    put_sampling(c);
    gguf_put_u32(c->w, "general.file_type", mx ? 38 : file_types[c->type]);
    gguf_put_u32(c->w, "general.quantization_version", 2);
}

/* ---- open ---- */

static enum status read_file(struct convert *c, const char *name, bool must, char **path,
                             cJSON **out, struct err *e)
{
    const size_t n = strlen(c->opt.dir) + strlen(name) + 2;
    *path = malloc(n);
    if (!*path) return no_memory(e);
    (void)snprintf(*path, n, "%s/%s", c->opt.dir, name);
    return must ? jf_read(*path, c->opt.ops, out, e) : jf_read_if_there(*path, c->opt.ops, out, e);
}

static enum convert_type resolve(const struct convert *c)
{
    const struct st_tensor *t = st_find(c->st, c->model.arch->rows[0].from); /* the embedding */
    if (c->opt.type != CONVERT_AUTO) return c->opt.type;
    return t && t->type == ST_BF16 ? CONVERT_BF16 : CONVERT_F16;
}

static enum status plan(struct convert *c, struct err *e)
{
    enum status s = st_open(c->opt.dir, c->opt.ops, &c->st, e);
    if (s) return s;
    c->used = calloc((size_t)st_n(c->st) + 1, sizeof *c->used);
    if (!c->used) return no_memory(e);
    c->type = resolve(c);
    s = add_rows(c, 0, -1, e);
    for (int r = 0; r < c->model.n_recursions && !s; r++) s = add_rows(c, '@', r, e);
    for (int l = 0; l < c->model.n_layer && !s; l++) s = add_rows(c, '#', l, e);
    if (s) return s;
    take_scales(c);
    if ((s = check_all_used(c, e))) return s;
    put_general(c);
    hf_vocab_put(c->vocab, c->w, c->model.add_bos);
    for (uint32_t i = 0; i < c->n; i++) {
        const struct convert_tensor *t = &c->tensor[i];
        gguf_put_tensor(c->w, t->name, t->type, t->n_dims, t->dim, t->bytes);
    }
    return OK;
}

enum status convert_open(struct convert *c, const struct convert_options *o, struct err *e)
{
    struct err own;
    char *path = NULL;
    if (!e) err_clear(e = &own);
    memset(c, 0, sizeof *c);
    c->opt = *o;
    c->w = gguf_writer_new();
    if (!c->w) return no_memory(e);
    enum status s = read_file(c, "config.json", true, &c->path, &c->config, e);
    if (!s) s = hf_model_read(c->config, c->path, c->w, &c->model, e);
    if (!s) s = read_file(c, "generation_config.json", false, &path, &c->generation, e);
    free(path);
    if (!s) s = hf_vocab_open(o->dir, o->ops, c->config, o->pre, &c->vocab, e);
    return s ? s : plan(c, e);
}

void convert_close(struct convert *c)
{
    gguf_writer_close(c->w);
    hf_vocab_close(c->vocab);
    st_close(c->st);
    cJSON_Delete(c->config);
    cJSON_Delete(c->generation);
    free(c->path);
    free(c->tensor);
    free(c->src);
    free(c->used);
    memset(c, 0, sizeof *c);
}
