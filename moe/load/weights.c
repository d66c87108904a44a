/* See weights.h. */
#include "moe/load/weights.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quant/mm.h"

void weights_init(struct weights *ws, const struct gguf *file)
{
    memset(ws, 0, sizeof *ws);
    ws->file = file;
}

void weights_free(struct weights *ws)
{
    for (int i = 0; i < ws->n; i++) free(ws->at[i].src);
    free(ws->at);
    memset(ws, 0, sizeof *ws);
}

bool weights_has(const struct weights *ws, const char *name)
{
    return gguf_find_tensor(ws->file, name) != NULL;
}

static int find(const struct weights *ws, const char *name, int row0)
{
    for (int i = 0; i < ws->n; i++)
        if (ws->at[i].row0 == row0 && !strcmp(ws->at[i].name, name)) return i;
    return -1;
}

static uint64_t mat_bytes(const struct weight *w)
{
    switch (w->layout) {
    case WEIGHT_TILES:
        return (uint64_t)((w->n_rows + TILE_ROWS - 1) / TILE_ROWS) * tile_bytes(w->type, w->n_cols);
    case WEIGHT_ROWS: return qtype_bytes(w->type, (uint64_t)w->n_cols) * (uint64_t)w->n_rows;
    case WEIGHT_VECTOR: return sizeof(float) * (uint64_t)w->n_cols * (uint64_t)w->n_rows;
    }
    return 0;
}

/* The base of a stack is a tensor of bytes: what it is as weights. */
static struct gguf_tensor as_weights(const struct weights *ws, const struct gguf_tensor *t)
{
    struct gguf_tensor v = *t;
    const struct qtype_info *q = qtype_info((uint32_t)ws->base);
    if (!qtype_is_stacked(ws->base) || t->type != GGUF_TENSOR_I8 || t->dim[0] % (uint64_t)q->block_bytes)
        return v;
    v.type = (uint32_t)ws->base;
    v.dim[0] = t->dim[0] / (uint64_t)q->block_bytes * (uint64_t)q->block;
    return v;
}

/* Does the tensor have the wanted shape, trailing ones aside? */
static bool shape_is(const struct gguf_tensor *t, uint64_t a, uint64_t b, uint64_t c)
{
    return t->dim[0] == a && t->dim[1] == b && t->dim[2] == c && t->dim[3] == 1;
}

static enum status check(const struct weights *ws, const struct gguf_tensor *in,
                         struct weight_shape want, int n_mats, struct err *e)
{
    const struct gguf_tensor view = as_weights(ws, in), *t = &view;
    const char *path = gguf_path(ws->file, t->shard);
    const int n = (int)t->name.n;
    if (want.n_stacked) {
        n_mats = want.n_stacked;
        want.n_all /= want.n_stacked;
    }
    if (!shape_is(t, (uint64_t)want.n_cols, (uint64_t)want.n_all, (uint64_t)n_mats))
        return err_set_at(e, ERR_SHAPE, t->offset,
                          "%s: tensor %.*s has shape %" PRIu64 " x %" PRIu64 " x %" PRIu64
                          ", but the model's keys ask for %d x %d x %d: the file is damaged or of "
                          "a variant that is not known",
                          path, n, t->name.s, t->dim[0], t->dim[1], t->dim[2], want.n_cols,
                          want.n_all, n_mats);
    const struct qtype_info *info = t->type == in->type ? qtype_in_files(t->type)
                                                        : qtype_info(t->type);
    if (!info)
        return err_set_at(e, ERR_UNSUPPORTED, t->offset,
                          "%s: tensor %.*s has weight type %" PRIu32
                          ", which this version cannot read: use a file in another format "
                          "(`tessera info` lists a file's types)",
                          path, n, t->name.s, t->type);
    if (want.layout == WEIGHT_VECTOR && info->block != 1)
        return err_set_at(e, ERR_SHAPE, t->offset,
                          "%s: tensor %.*s is quantised (%s), but norms and biases must be floats",
                          path, n, t->name.s, info->name);
    if (qtype_is_stacked(info->id) &&
        (want.layout != WEIGHT_TILES || want.n_stacked || want.row0 || want.n_rows != want.n_all))
        return err_set_at(e, ERR_UNSUPPORTED, t->offset,
                          "%s: tensor %.*s is a stack, but is used in pieces: build the stack "
                          "without it", path, n, t->name.s);
    if (want.layout == WEIGHT_TILES && !qtype_is_stacked(info->id) && !mm_kernels(CPU_REF)->mm[t->type])
        return err_set_at(e, ERR_UNSUPPORTED, t->offset,
                          "%s: tensor %.*s has type %s, which has no kernels", path, n, t->name.s,
                          info->name);
    return OK;
}

/* Makes room for one more weight with n_src sources. */
static struct weight *grow(struct weights *ws, int n_src, struct err *e)
{
    if (ws->n == ws->cap) {
        int cap = ws->cap ? 2 * ws->cap : 64;
        struct weight *at = realloc(ws->at, sizeof *at * (size_t)cap);
        if (!at) {
            err_set(e, ERR_MEMORY, "no memory for the weight table");
            return NULL;
        }
        ws->at = at;
        ws->cap = cap;
    }
    struct weight *w = &ws->at[ws->n];
    memset(w, 0, sizeof *w);
    w->src = calloc((size_t)n_src, sizeof *w->src);
    if (!w->src) {
        err_set(e, ERR_MEMORY, "no memory for the weight table");
        return NULL;
    }
    w->n_src = n_src;
    return w;
}

static int finish(struct weights *ws, struct weight *w, struct weight_shape s, const char *name)
{
    (void)snprintf(w->name, sizeof w->name, "%s", name);
    w->type = (enum qtype)as_weights(ws, w->src[0]).type;
    w->layout = s.layout;
    w->n_cols = s.n_cols;
    w->n_rows = s.n_rows;
    w->n_mats = s.n_mats;
    w->row0 = s.row0;
    w->n_all = s.n_all;
    w->first_part = ws->n_parts;
    w->mat_file_bytes = qtype_bytes(w->type, (uint64_t)s.n_cols) * (uint64_t)s.n_rows;
    w->mat_bytes = mat_bytes(w);
    ws->n_parts += s.n_mats;
    return ws->n++;
}

int weights_bind(struct weights *ws, struct weight_shape s, const char *name, struct err *e)
{
    int known = find(ws, name, s.row0);
    if (known >= 0) return known;
    if (!s.n_all) s.n_all = s.n_rows;
    const struct gguf_tensor *t = gguf_find_tensor(ws->file, name);
    if (!t) {
        err_set(e, ERR_MISSING,
                "%s: tensor %s is missing: the file is incomplete or of another architecture",
                gguf_path(ws->file, 0), name);
        return -1;
    }
    if (check(ws, t, s, s.n_mats, e)) return -1;
    struct weight *w = grow(ws, 1, e);
    if (!w) return -1;
    w->src[0] = t;
    return finish(ws, w, s, name);
}

int weights_bind_split(struct weights *ws, struct weight_shape s, const char *name,
                       const char *prefix, const char *suffix, struct err *e)
{
    int known = find(ws, name, 0);
    if (known >= 0) return known;
    s.n_all = s.n_rows;
    struct weight *w = grow(ws, s.n_mats, e);
    if (!w) return -1;
    for (int m = 0; m < s.n_mats; m++) {
        char one[128];
        (void)snprintf(one, sizeof one, "%s%d%s", prefix, m, suffix);
        const struct gguf_tensor *t = gguf_find_tensor(ws->file, one);
        enum status st = OK;
        if (!t)
            st = err_set(e, ERR_MISSING, "%s: tensor %s is missing: the file is incomplete",
                         gguf_path(ws->file, 0), one);
        else
            st = check(ws, t, s, 1, e);
        if (!st && t->type != (w->src[0] ? w->src[0]->type : t->type))
            st = err_set_at(e, ERR_UNSUPPORTED, t->offset,
                            "%s: tensor %s has another type than its layer's other experts",
                            gguf_path(ws->file, t->shard), one);
        if (st) {
            free(w->src);
            return -1;
        }
        w->src[m] = t;
    }
    return finish(ws, w, s, name);
}

int weights_bind_bytes(struct weights *ws, const char *name, int n_cols, int n_rows, struct err *e)
{
    struct weight *w = grow(ws, 1, e);
    if (!w) return -1;
    w->src[0] = gguf_find_tensor(ws->file, name);
    ASSERT(w->src[0]);
    const struct weight_shape s = {.layout = WEIGHT_ROWS, .n_cols = n_cols, .n_rows = n_rows,
                                   .n_all = n_rows, .n_mats = 1};
    const int i = finish(ws, w, s, name);
    w->type = QTYPE_BYTES;
    w->mat_file_bytes = w->mat_bytes = (uint64_t)n_cols * (uint64_t)n_rows;
    return i;
}

static bool is_used(const struct weights *ws, const struct gguf_tensor *t)
{
    for (int i = 0; i < ws->n; i++)
        for (int k = 0; k < ws->at[i].n_src; k++)
            if (ws->at[i].src[k] == t) return true;
    return false;
}

void weights_skip(struct weights *ws, int from, const char *name)
{
    ASSERT(ws->n_skips < WEIGHT_SKIPS);
    ws->skip[ws->n_skips++] = (struct weight_skip){from, name};
}

static bool is_skipped(const struct weights *ws, const struct gguf_tensor *t)
{
    if (t->name.n < 6 || memcmp(t->name.s, "blk.", 4)) return false;
    uint64_t i = 4, layer = 0;
    for (; i < t->name.n && i < 12 && t->name.s[i] >= '0' && t->name.s[i] <= '9'; i++)
        layer = 10 * layer + (uint64_t)(t->name.s[i] - '0');
    if (i == 4 || i == t->name.n || t->name.s[i++] != '.') return false;
    for (int k = 0; k < ws->n_skips; k++) {
        const char *name = ws->skip[k].name;
        if (layer < (uint64_t)ws->skip[k].from) continue;
        if (!name || (strlen(name) == t->name.n - i && !memcmp(name, t->name.s + i, t->name.n - i)))
            return true;
    }
    return false;
}

enum status weights_check_all_used(const struct weights *ws, struct err *e)
{
    for (uint64_t i = 0; i < gguf_n_tensors(ws->file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(ws->file, i);
        if (!is_used(ws, t) && !is_skipped(ws, t))
            return err_set_at(e, ERR_UNSUPPORTED, t->offset,
                              "%s: tensor %.*s is not part of this architecture as Tessera knows "
                              "it; without it the model's answers would be wrong",
                              gguf_path(ws->file, t->shard), (int)(t->name.n < 96 ? t->name.n : 96),
                              t->name.s);
    }
    return OK;
}
