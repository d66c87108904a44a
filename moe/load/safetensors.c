/* See safetensors.h.
 *
 * Owns the open files and one list of tensors, sorted by name.  Everything in a header is
 * untrusted: counts are bounded by the bytes that are really there, ranges are checked by
 * sorting. */
#include "moe/load/safetensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "moe/base/f16.h"
#include "moe/load/cursor.h"
#include "moe/load/jsonfile.h"

enum {
    HEADER_MAX = 100 * 1000 * 1000, /* the format's own limit */
    NAME_MAX_BYTES = 512,
};

struct st {
    char *dir; /* owned, as the files' paths are */
    const struct osfile_ops *ops;
    struct osfile *file; /* [n_shards] */
    int n_shards;
    cJSON **header;      /* [n_shards] names and types borrow from them */
    struct st_tensor *tensor; /* [n] */
    uint64_t n, cap, bytes;
};

/* ---- values ---- */

static const struct dtype {
    const char *name;
    enum st_type type;
    int bytes;
} dtypes[] = {
    {"F32", ST_F32, 4},         {"F16", ST_F16, 2},    {"BF16", ST_BF16, 2},
    {"F8_E4M3", ST_F8_E4M3, 1}, {"U8", ST_U8, 1},      {"F64", ST_OTHER, 8},
    {"I64", ST_OTHER, 8},       {"U64", ST_OTHER, 8},  {"I32", ST_OTHER, 4},
    {"U32", ST_OTHER, 4},       {"I16", ST_OTHER, 2},  {"U16", ST_OTHER, 2},
    {"I8", ST_OTHER, 1},        {"BOOL", ST_OTHER, 1}, {"F8_E5M2", ST_OTHER, 1},
    {"F8_E8M0", ST_OTHER, 1},
};

int st_width(enum st_type type)
{
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (dtypes[i].type == type && type != ST_OTHER) return dtypes[i].bytes;
    return 0;
}

/* Four bits of exponent (bias 7), three of mantissa; no infinity, all ones is NaN. */
static float f8_e4m3_to_f32(uint8_t v)
{
    const uint32_t sign = (uint32_t)(v & 0x80u) << 24, exp = v >> 3 & 15u, man = v & 7u;
    if (exp == 15 && man == 7) return f32_from_bits(sign | 0x7fc00000u);
    if (exp) return f32_from_bits(sign | (exp + 120) << 23 | man << 20);
    const float x = (float)man * 0x1p-9f;
    return sign ? -x : x;
}

void st_decode(enum st_type type, const void *src, float *x, uint64_t n)
{
    const uint8_t *p = src;
    switch (type) {
    case ST_F32:
        for (uint64_t i = 0; i < n; i++) x[i] = f32_from_bits((uint32_t)cursor_le(p + 4 * i, 4));
        break;
    case ST_F16:
        for (uint64_t i = 0; i < n; i++) x[i] = f16_to_f32((uint16_t)cursor_le(p + 2 * i, 2));
        break;
    case ST_BF16:
        for (uint64_t i = 0; i < n; i++) x[i] = bf16_to_f32((uint16_t)cursor_le(p + 2 * i, 2));
        break;
    case ST_F8_E4M3:
        for (uint64_t i = 0; i < n; i++) x[i] = f8_e4m3_to_f32(p[i]);
        break;
    case ST_U8:
    case ST_OTHER: ASSERT(!"a type without a value");
    }
}

/* ---- one header ---- */

static enum status bad(const struct osfile *f, const char *name, const char *what, struct err *e)
{
    return err_set_at(e, ERR_FORMAT, 8, "%s: tensor %.80s: %s: the file is damaged", f->path, name,
                      what);
}

static enum status read_shape(const struct osfile *f, const cJSON *v, struct st_tensor *t,
                              uint64_t *count, struct err *e)
{
    *count = 1;
    for (int i = 0; i < ST_DIMS; i++) t->dim[i] = 1;
    if (!cJSON_IsArray(v)) return bad(f, t->name, "no \"shape\"", e);
    for (const cJSON *d = v->child; d; d = d->next) {
        if (t->n_dims == ST_DIMS)
            return err_set(e, ERR_UNSUPPORTED, "%s: tensor %.80s has more than %d dimensions",
                           f->path, t->name, ST_DIMS);
        uint64_t *dim = &t->dim[t->n_dims++];
        if (!jf_u64(d, dim)) return bad(f, t->name, "a dimension is no whole number", e);
        if (*dim && *count > UINT64_MAX / 16 / *dim)
            return bad(f, t->name, "more values than any file can hold", e);
        *count *= *dim;
    }
    return OK;
}

static enum status read_tensor(const struct osfile *f, const cJSON *v, uint64_t data,
                               struct st_tensor *t, struct err *e)
{
    uint64_t count, begin, end;
    int width = 0;
    t->name = v->string;
    if (!cJSON_IsObject(v)) return bad(f, t->name, "not an object", e);
    if (!*t->name || strlen(t->name) > NAME_MAX_BYTES)
        return bad(f, t->name, "a name must have 1 to 512 bytes", e);
    t->type_name = jf_str(v, "dtype");
    if (!t->type_name) return bad(f, t->name, "no \"dtype\"", e);
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(dtypes[i].name, t->type_name)) continue;
        t->type = dtypes[i].type;
        width = dtypes[i].bytes;
    }
    if (!width)
        return err_set(e, ERR_UNSUPPORTED, "%s: tensor %.80s: \"dtype\" %.20s is not known",
                       f->path, t->name, t->type_name);
    enum status s = read_shape(f, jf_get(v, "shape"), t, &count, e);
    if (s) return s;
    const cJSON *o = jf_get(v, "data_offsets");
    if (!cJSON_IsArray(o) || cJSON_GetArraySize(o) != 2 || !jf_u64(o->child, &begin) ||
        !jf_u64(o->child->next, &end))
        return bad(f, t->name, "\"data_offsets\" are not two whole numbers", e);
    if (begin > end || end > f->size - data)
        return err_set_at(e, ERR_FORMAT, f->size,
                          "%s: tensor %.80s: bytes %" PRIu64 " to %" PRIu64 " of the data, which "
                          "has %" PRIu64 ": the file is damaged or was not downloaded completely",
                          f->path, t->name, begin, end, f->size - data);
    t->bytes = end - begin;
    t->offset = data + begin;
    if (t->bytes != count * (uint64_t)width)
        return err_set_at(e, ERR_FORMAT, t->offset,
                          "%s: tensor %.80s: %" PRIu64 " values of %s are not %" PRIu64 " bytes: "
                          "the file is damaged",
                          f->path, t->name, count, t->type_name, t->bytes);
    return OK;
}

static struct st_tensor *add_tensor(struct st *s, struct err *e)
{
    if (s->n == ST_TENSORS_MAX) {
        (void)err_set(e, ERR_UNSUPPORTED, "%s: more than %d tensors", s->dir, ST_TENSORS_MAX);
        return NULL;
    }
    if (s->n == s->cap) {
        const uint64_t cap = s->cap ? s->cap * 2 : 256;
        struct st_tensor *t = realloc(s->tensor, (size_t)cap * sizeof *t);
        if (!t) {
            (void)err_set(e, ERR_MEMORY, "no memory for the list of tensors");
            return NULL;
        }
        s->tensor = t;
        s->cap = cap;
    }
    struct st_tensor *t = &s->tensor[s->n++];
    memset(t, 0, sizeof *t);
    return t;
}

static int by_offset(const void *a, const void *b)
{
    const struct st_tensor *x = a, *y = b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* The tensors from `first` on cover the data from its first byte to its last, each byte once. */
static enum status check_ranges(const struct st *s, const struct osfile *f, uint64_t first,
                                uint64_t data, struct err *e)
{
    uint64_t at = data;
    if (s->n > first)
        qsort(s->tensor + first, (size_t)(s->n - first), sizeof *s->tensor, by_offset);
    for (uint64_t i = first; i < s->n; i++) {
        const struct st_tensor *t = &s->tensor[i];
        if (t->offset != at)
            return err_set_at(e, ERR_FORMAT, t->offset,
                              "%s: tensor %.80s begins at byte %" PRIu64 ", %s: the file is "
                              "damaged",
                              f->path, t->name, t->offset,
                              t->offset < at ? "inside another one" : "behind a gap");
        at += t->bytes;
    }
    if (at != f->size)
        return err_set_at(e, ERR_FORMAT, at,
                          "%s: no tensor has the bytes from %" PRIu64 " on: the file is damaged",
                          f->path, at);
    return OK;
}

static enum status parse_header(struct st *s, int shard, const char *text, uint64_t n,
                                struct err *e)
{
    const struct osfile *f = &s->file[shard];
    const uint64_t data = 8 + n, first = s->n;
    if (text[0] != '{')
        return err_set_at(e, ERR_FORMAT, 8, "%s: no JSON object behind the length: this is not a "
                          "safetensors file", f->path);
    enum status st = jf_parse(f->path, text, (size_t)n, 8, &s->header[shard], e);
    if (st) return st;
    for (const cJSON *v = s->header[shard]->child; v; v = v->next) {
        if (!strcmp(v->string, "__metadata__")) continue;
        struct st_tensor *t = add_tensor(s, e);
        if (!t) return e->code;
        t->shard = shard;
        if ((st = read_tensor(f, v, data, t, e))) return st;
        s->bytes += t->bytes;
    }
    return check_ranges(s, f, first, data, e);
}

static enum status read_header(struct st *s, int shard, struct err *e)
{
    const struct osfile *f = &s->file[shard];
    uint8_t len[8];
    if (f->size < 8)
        return err_set_at(e, ERR_FORMAT, f->size, "%s has %" PRIu64 " bytes: too short for a "
                          "safetensors file", f->path, f->size);
    enum status st = osfile_read(f, len, 8, 0, e);
    if (st) return st;
    const uint64_t n = cursor_le(len, 8);
    if (n > f->size - 8 || n < 2)
        return err_set_at(e, ERR_FORMAT, 0,
                          "%s: a header of %" PRIu64 " bytes in a file of %" PRIu64
                          ": this is no safetensors file, or it was not downloaded completely",
                          f->path, n, f->size);
    if (n > HEADER_MAX)
        return err_set_at(e, ERR_UNSUPPORTED, 0, "%s: a header of %" PRIu64 " bytes is more than "
                          "the format allows", f->path, n);
    char *text = malloc((size_t)n + 1);
    if (!text) return err_set(e, ERR_MEMORY, "no memory for the header of %s", f->path);
    st = osfile_read(f, text, (size_t)n, 8, e);
    text[n] = 0;
    if (!st) st = parse_header(s, shard, text, n, e);
    free(text);
    return st;
}

/* ---- the set ---- */

static enum status open_shard(struct st *s, const char *name, struct err *e)
{
    const size_t room = strlen(s->dir) + strlen(name) + 2;
    char *path = malloc(room);
    if (!path) return err_set(e, ERR_MEMORY, "no memory to open %s", name);
    (void)snprintf(path, room, "%s/%s", s->dir, name);
    enum status st = osfile_open(&s->file[s->n_shards], path, 0, s->ops, e);
    free(path);
    if (st) return st;
    return read_header(s, s->n_shards++, e);
}

/* A plain file name that stays in the folder. */
static bool is_plain(const char *name)
{
    const size_t n = strlen(name);
    if (n < 13 || n > 255 || name[0] == '.' || strcmp(name + n - 12, ".safetensors")) return false;
    for (const char *c = name; *c; c++)
        if (*c == '/' || *c == '\\' || (unsigned char)*c < 0x20) return false;
    return true;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The files of an index, each once; *n of them in files[], which has room for all entries. */
static enum status list_files(const struct st *s, const cJSON *map, const char **files, size_t *n,
                              struct err *e)
{
    *n = 0;
    for (const cJSON *v = map->child; v; v = v->next) {
        const char *name = cJSON_GetStringValue(v);
        if (!name || !is_plain(name))
            return err_set(e, ERR_FORMAT, "%s/model.safetensors.index.json: tensor %.80s is in "
                           "\"%.80s\", which is no file of this folder", s->dir, v->string,
                           name ? name : "?");
        files[(*n)++] = name;
    }
    qsort(files, *n, sizeof *files, by_text);
    size_t k = 0;
    for (size_t i = 0; i < *n; i++)
        if (!i || strcmp(files[i], files[k - 1])) files[k++] = files[i];
    *n = k;
    if (!k || k > ST_SHARDS_MAX)
        return err_set(e, ERR_UNSUPPORTED, "%s/model.safetensors.index.json names %zu files; 1 to "
                       "%d are possible", s->dir, k, ST_SHARDS_MAX);
    return OK;
}

static enum status room_for(struct st *s, size_t n, struct err *e)
{
    s->file = calloc(n, sizeof *s->file);
    s->header = calloc(n, sizeof *s->header);
    if (!s->file || !s->header) return err_set(e, ERR_MEMORY, "no memory for %zu files", n);
    for (size_t i = 0; i < n; i++) s->file[i].fd = -1;
    return OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct st_tensor *)a)->name, ((const struct st_tensor *)b)->name);
}

static enum status sort_names(struct st *s, struct err *e)
{
    if (s->n) qsort(s->tensor, (size_t)s->n, sizeof *s->tensor, by_name);
    for (uint64_t i = 1; i < s->n; i++)
        if (!by_name(&s->tensor[i - 1], &s->tensor[i]))
            return err_set(e, ERR_FORMAT, "%s: tensor %.80s is there twice (also in %s)",
                           s->file[s->tensor[i].shard].path, s->tensor[i].name,
                           s->file[s->tensor[i - 1].shard].path);
    return OK;
}

/* Index and files must say the same. */
static enum status check_index(const struct st *s, const cJSON *map, struct err *e)
{
    uint64_t n = 0;
    for (const cJSON *v = map->child; v; v = v->next, n++) {
        const struct st_tensor *t = st_find(s, v->string);
        const char *path = t ? s->file[t->shard].path : NULL;
        if (!t || strcmp(path + strlen(s->dir) + 1, v->valuestring))
            return err_set(e, ERR_FORMAT, "%s/model.safetensors.index.json: tensor %.80s is not in "
                           "%.80s: index and files do not belong together", s->dir, v->string,
                           v->valuestring);
    }
    if (n != s->n)
        return err_set(e, ERR_FORMAT, "%s/model.safetensors.index.json lists %" PRIu64 " tensors, "
                       "its files have %" PRIu64 ": they do not belong together", s->dir, n, s->n);
    return OK;
}

static enum status open_indexed(struct st *s, const cJSON *map, struct err *e)
{
    const int entries = cJSON_GetArraySize(map);
    const char **files = malloc(((size_t)entries + 1) * sizeof *files);
    size_t n;
    if (!files) return err_set(e, ERR_MEMORY, "no memory for the index");
    enum status st = list_files(s, map, files, &n, e);
    if (!st) st = room_for(s, n, e);
    for (size_t i = 0; i < n && !st; i++) st = open_shard(s, files[i], e);
    free(files);
    if (!st) st = sort_names(s, e);
    return st ? st : check_index(s, map, e);
}

static enum status open_set(struct st *s, struct err *e)
{
    const size_t room = strlen(s->dir) + 40;
    char *path = malloc(room);
    cJSON *index = NULL;
    if (!path) return err_set(e, ERR_MEMORY, "no memory to open %s", s->dir);
    (void)snprintf(path, room, "%s/model.safetensors.index.json", s->dir);
    enum status st = jf_read_if_there(path, s->ops, &index, e);
    if (!st && index) {
        const cJSON *map = jf_get(index, "weight_map");
        st = cJSON_IsObject(map) ? open_indexed(s, map, e)
                                 : err_set(e, ERR_FORMAT, "%s has no \"weight_map\"", path);
    } else if (!st) {
        st = room_for(s, 1, e);
        if (!st) st = open_shard(s, "model.safetensors", e);
        if (!st) st = sort_names(s, e);
    }
    cJSON_Delete(index);
    free(path);
    return st;
}

enum status st_open(const char *dir, const struct osfile_ops *ops, struct st **out, struct err *e)
{
    struct err own;
    if (!e) err_clear(e = &own);
    *out = NULL;
    struct st *s = calloc(1, sizeof *s);
    if (!s) return err_set(e, ERR_MEMORY, "no memory to open %s", dir);
    s->ops = ops;
    s->dir = strdup(dir);
    enum status st = s->dir ? open_set(s, e) : err_set(e, ERR_MEMORY, "no memory to open %s", dir);
    if (st) {
        st_close(s);
        return st;
    }
    *out = s;
    return OK;
}

void st_close(struct st *s)
{
    if (!s) return;
    for (int i = 0; i < s->n_shards; i++) {
        osfile_close(&s->file[i]);
        cJSON_Delete(s->header[i]);
    }
    free(s->file);
    free(s->header);
    free(s->tensor);
    free(s->dir);
    free(s);
}

/* ---- questions ---- */

int st_n_shards(const struct st *s) { return s->n_shards; }
const char *st_path(const struct st *s, int shard) { return s->file[shard].path; }
uint64_t st_bytes(const struct st *s) { return s->bytes; }
uint64_t st_n(const struct st *s) { return s->n; }
const struct st_tensor *st_at(const struct st *s, uint64_t i) { return &s->tensor[i]; }

const struct st_tensor *st_find(const struct st *s, const char *name)
{
    const struct st_tensor key = {.name = name};
    return s->n ? bsearch(&key, s->tensor, (size_t)s->n, sizeof key, by_name) : NULL;
}

enum status st_read(const struct st *s, const struct st_tensor *t, void *buf, uint64_t n,
                    uint64_t at, struct err *e)
{
    const struct osfile *f = &s->file[t->shard];
    ASSERT(at <= t->bytes && n <= t->bytes - at);
    enum status st = osfile_read(f, buf, (size_t)n, t->offset + at, e);
    if (!st) f->ops->drop(f->fd, t->offset + at, n);
    return st;
}
