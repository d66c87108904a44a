/* GGUF reader: see gguf.h for the contract and the layout.
 *
 * DESIGN.  The header is read through a cursor into one heap buffer until the tensor directory
 * ends; nothing else of the file is touched, and the page cache it cost is given back.  The buffer
 * has room for all that a header may be, which costs address space only: growing would leave copies
 * behind.  It may move when it is cut to size, so parsing stores positions and settle() turns them
 * into pointers.  Tables grow with what was really parsed, never with what a count promises.  Names
 * are indexed by sorting: unlike a hash table that has no bad inputs, and equal names end up
 * neighbours, which is how duplicates are found.
 *
 * Owns the header bytes of every part of a split set; keeps no file open.  Never maps a file,
 * never reads tensor data, never looks at what a key means (but general.alignment and split.*). */
#include "moe/load/gguf.h"

#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "moe/load/cursor.h"
#include "quant/qtype.h"

enum {
    FIRST_READ = 256 << 10,
    READ_AHEAD = 1 << 20,   /* what the kernel may have read beyond our reads */
    HEADER_MAX = 256 << 20, /* ten times the largest vocabulary in use */
    NAME_MAX_BYTES = 65535, /* the specification's limit for keys */
    KV_MAX = 1 << 16,
    TENSORS_MAX = 1 << 20,
    KV_MIN_BYTES = 14,     /* one-letter key, type, one byte */
    TENSOR_MIN_BYTES = 33, /* one-letter name, one dim */
    DEFAULT_ALIGNMENT = 32,
};

struct pair {
    struct gguf_kv kv;
    uint64_t key_at, data_at; /* positions of kv.key.s and kv.value.data */
};

struct entry {
    struct gguf_tensor t;
    uint64_t name_at;   /* position of t.name.s */
    uint64_t dims_at;   /* of dim[0] */
    uint64_t offset_at; /* of the offset */
};

struct ref { /* of an index: sorted by name, then by place */
    struct gguf_str name;
    uint32_t at;
};

struct kv_table {
    struct pair *v;
    uint64_t n, cap;
    struct ref *by_name;
};

struct shard {
    char *path;
    uint8_t *header;
    uint64_t file_bytes;
};

struct gguf {
    struct shard *shards;
    int n_shards;
    uint64_t shards_cap, header_bytes; /* of all parts so far */
    uint32_t version;
    struct kv_table kv; /* of the first part */
    struct entry *tensors;
    uint64_t n_tensors, tensors_cap;
    struct ref *tensors_by_name;
};

struct reader { /* one part while it is being parsed */
    struct osfile file;
    struct cursor c;
    uint8_t *buf; /* c.have bytes */
    struct gguf *g;
    struct kv_table kv;
    uint64_t first_tensor; /* index in g->tensors */
    uint32_t alignment;
    struct err *e; /* clear on entry; never NULL */
};

/* ---- messages ----------------------------------------------------------------------------- */

/* A name from a file, fit to print: at most 80 bytes, nothing that moves a terminal's cursor. */
struct printable {
    char s[84];
};

static struct printable printable(const void *bytes, uint64_t n)
{
    struct printable p;
    const uint8_t *b = bytes;
    size_t len = n < 80 ? (size_t)n : 80;
    for (size_t i = 0; i < len; i++)
        p.s[i] = b[i] >= 0x20 && b[i] < 0x7f ? (char)b[i] : '?';
    memcpy(p.s + len, n > 80 ? "..." : "", n > 80 ? 4 : 1);
    return p;
}

static struct printable printable_str(struct gguf_str s) { return printable(s.s, s.n); }

/* The end of a path: what tells files apart, and leaves room for the message. */
static const char *path_tail(const char *path)
{
    size_t n = strlen(path);
    return n > 200 ? path + n - 200 : path;
}

static enum status bad(struct reader *r, enum status code, uint64_t pos, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static enum status bad(struct reader *r, enum status code, uint64_t pos, const char *fmt, ...)
{
    char what[384];
    va_list ap;
    va_start(ap, fmt);
    (void)vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return err_set_at(r->e, code, pos, "%s, byte %" PRIu64 ": %s", path_tail(r->file.path), pos,
                      what);
}

/* After the cursor failed while reading `what`. */
static enum status bad_end(struct reader *r, const char *what)
{
    const struct cursor *c = &r->c;
    if (r->e->code != OK) return r->e->code; /* the read itself failed and said so */
    if (c->fail_need <= r->file.size - c->fail_pos)
        return bad(r, ERR_UNSUPPORTED, c->fail_pos,
                   "the header is larger than %d MiB: this is no model", HEADER_MAX >> 20);
    return bad(r, ERR_FORMAT, c->fail_pos,
               "%s needs %" PRIu64 " bytes from here, but the file has only %" PRIu64
               " in all: it is truncated or damaged, download it again",
               what, c->fail_need, r->file.size);
}

static enum status no_memory(struct reader *r)
{
    return err_set(r->e, ERR_MEMORY, "no memory to read the header of %s",
                   path_tail(r->file.path));
}

/* ---- memory ------------------------------------------------------------------------------- */

/* Room for one more element; *v is unchanged on failure. */
static bool grow(void **v, uint64_t n, uint64_t *cap, size_t size)
{
    if (n < *cap) return true;
    uint64_t want = *cap ? *cap * 2 : 64;
    void *p = realloc(*v, (size_t)want * size);
    if (!p) return false;
    *v = p;
    *cap = want;
    return true;
}

/* Cursor callback: reads on until `need` bytes are there, a quarter more at least; what that put in
 * the page cache goes at once. */
static bool read_more(struct cursor *c, uint64_t need)
{
    struct reader *r = c->arg;
    uint64_t want = c->have + (c->have / 4 > FIRST_READ ? c->have / 4 : FIRST_READ);
    if (want < need) want = need;
    if (want > c->size) want = c->size;
    c->base = r->buf;
    if (osfile_read(&r->file, r->buf + c->have, (size_t)(want - c->have), c->have, r->e))
        return false;
    if (r->file.ops->drop) r->file.ops->drop(r->file.fd, 0, want);
    c->have = want;
    return true;
}

/* ---- index -------------------------------------------------------------------------------- */

static int compare_names(struct gguf_str a, struct gguf_str b)
{
    int c = memcmp(a.s, b.s, (size_t)(a.n < b.n ? a.n : b.n));
    return c ? c : (a.n > b.n) - (a.n < b.n);
}

static int compare_refs(const void *pa, const void *pb)
{
    const struct ref *a = pa, *b = pb;
    int c = compare_names(a->name, b->name);
    return c ? c : (a->at > b->at) - (a->at < b->at);
}

static const struct ref *find_ref(const struct ref *v, uint64_t n, const char *name)
{
    struct gguf_str want = {name, strlen(name)};
    uint64_t lo = 0, hi = n;
    while (lo < hi) {
        uint64_t mid = lo + (hi - lo) / 2;
        int c = compare_names(want, v[mid].name);
        if (!c) return &v[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

/* Sorts; returns the first of two equal neighbours or NULL. */
static const struct ref *sort_refs(struct ref *v, uint64_t n)
{
    qsort(v, (size_t)n, sizeof *v, compare_refs);
    for (uint64_t i = 1; i < n; i++)
        if (!compare_names(v[i - 1].name, v[i].name)) return &v[i - 1];
    return NULL;
}

static enum status index_kv(struct reader *r)
{
    struct kv_table *t = &r->kv;
    t->by_name = malloc((size_t)(t->n ? t->n : 1) * sizeof *t->by_name);
    if (!t->by_name) return no_memory(r);
    for (uint64_t i = 0; i < t->n; i++)
        t->by_name[i] = (struct ref){t->v[i].kv.key, (uint32_t)i};
    const struct ref *twice = sort_refs(t->by_name, t->n);
    if (!twice) return OK;
    uint64_t first = t->v[twice[0].at].key_at - 8, second = t->v[twice[1].at].key_at - 8;
    return bad(r, ERR_FORMAT, second,
               "key '%s' is there twice, at byte %" PRIu64 " and here: the tool that wrote the "
               "file is broken",
               printable_str(twice->name).s, first);
}

static enum status index_tensors(struct gguf *g, struct err *e)
{
    g->tensors_by_name = malloc((size_t)(g->n_tensors ? g->n_tensors : 1) * sizeof(struct ref));
    if (!g->tensors_by_name)
        return err_set(e, ERR_MEMORY, "no memory for the tensor directory of %s",
                       path_tail(g->shards[0].path));
    for (uint64_t i = 0; i < g->n_tensors; i++)
        g->tensors_by_name[i] = (struct ref){g->tensors[i].t.name, (uint32_t)i};
    const struct ref *twice = sort_refs(g->tensors_by_name, g->n_tensors);
    if (!twice) return OK;
    const struct entry *a = &g->tensors[twice[0].at], *b = &g->tensors[twice[1].at];
    const char *pa = path_tail(g->shards[a->t.shard].path);
    const char *pb = path_tail(g->shards[b->t.shard].path);
    return err_set_at(e, ERR_FORMAT, b->name_at - 8,
                      "%.120s, byte %" PRIu64 ": tensor '%s' is there twice, at byte %" PRIu64
                      " of %.120s and here: the tool that wrote the file is broken",
                      pb, b->name_at - 8, printable_str(twice->name).s, a->name_at - 8,
                      a->t.shard == b->t.shard ? "this file" : pa);
}

/* ---- keys and values ---------------------------------------------------------------------- */

static const uint8_t type_bytes[GGUF_TYPE_N] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

const char *gguf_type_name(enum gguf_type t)
{
    static const char *const names[GGUF_TYPE_N] = {"u8",  "i8",   "u16",    "i16",   "u32",
                                                   "i32", "f32",  "bool",   "string", "array",
                                                   "u64", "i64", "f64"};
    return (unsigned)t < GGUF_TYPE_N ? names[t] : "?";
}

/* Reads a string; *at is the position of its bytes. */
static bool read_str(struct reader *r, uint64_t *at, uint64_t *n)
{
    *n = cursor_u64(&r->c);
    *at = r->c.pos;
    return cursor_skip(&r->c, *n);
}

/* Reads the name of a key or tensor: `what`. */
static enum status read_name(struct reader *r, const char *what, uint64_t *at, uint64_t *n)
{
    uint64_t pos = r->c.pos;
    *n = cursor_u64(&r->c);
    *at = r->c.pos;
    if (r->c.failed) return bad_end(r, what);
    if (!*n) return bad(r, ERR_FORMAT, pos, "%s has no name: the file is damaged", what);
    if (*n > NAME_MAX_BYTES)
        return bad(r, ERR_FORMAT, pos,
                   "%s with a name of %" PRIu64 " bytes: the file is damaged, download it again",
                   what, *n);
    return cursor_skip(&r->c, *n) ? OK : bad_end(r, what);
}

static struct printable key_text(const struct reader *r, const struct pair *p)
{
    return printable(r->buf + p->key_at, p->kv.key.n);
}

static enum status read_type(struct reader *r, const struct pair *p, enum gguf_type *out)
{
    uint64_t pos = r->c.pos;
    uint32_t t = cursor_u32(&r->c);
    if (r->c.failed) return bad_end(r, "a value's type");
    if (t >= GGUF_TYPE_N)
        return bad(r, ERR_FORMAT, pos,
                   "key '%s' has value type %" PRIu32 ", known are 0 to %d: the file is damaged",
                   key_text(r, p).s, t, GGUF_TYPE_N - 1);
    *out = (enum gguf_type)t;
    return OK;
}

static enum status check_bools(struct reader *r, const struct pair *p)
{
    const struct gguf_value *v = &p->kv.value;
    for (uint64_t i = 0; i < v->n; i++)
        if (r->buf[p->data_at + i] > 1)
            return bad(r, ERR_FORMAT, p->data_at + i,
                       "key '%s' has a bool that is neither 0 nor 1: the file is damaged",
                       key_text(r, p).s);
    return OK;
}

/* n strings that stand one after another. */
static enum status read_strs(struct reader *r, struct pair *p)
{
    uint64_t at, n;
    p->data_at = r->c.pos;
    for (uint64_t i = 0; i < p->kv.value.n; i++)
        if (!read_str(r, &at, &n)) return bad_end(r, "a string of an array");
    p->kv.value.bytes = r->c.pos - p->data_at;
    return OK;
}

/* n values of a type with a fixed size. */
static enum status read_fixed(struct reader *r, struct pair *p, enum gguf_type type)
{
    p->data_at = r->c.pos;
    p->kv.value.bytes = p->kv.value.n * type_bytes[type];
    if (!cursor_skip(&r->c, p->kv.value.bytes)) return bad_end(r, "a value");
    return type == GGUF_BOOL ? check_bools(r, p) : OK;
}

static enum status read_array(struct reader *r, struct pair *p)
{
    struct gguf_value *v = &p->kv.value;
    uint64_t type_pos = r->c.pos;
    enum status s = read_type(r, p, &v->elem);
    if (s) return s;
    if (v->elem == GGUF_ARRAY)
        return bad(r, ERR_UNSUPPORTED, type_pos, "key '%s' is an array of arrays: not supported",
                   key_text(r, p).s);
    uint64_t pos = r->c.pos;
    v->n = cursor_u64(&r->c);
    if (r->c.failed) return bad_end(r, "an array's length");
    uint64_t least = v->elem == GGUF_STRING ? 8 : type_bytes[v->elem];
    if (v->n > cursor_left(&r->c) / least)
        return bad(r, ERR_FORMAT, pos,
                   "key '%s' says it has %" PRIu64 " elements, the rest of the file cannot hold "
                   "them: it is truncated or damaged, download it again",
                   key_text(r, p).s, v->n);
    return v->elem == GGUF_STRING ? read_strs(r, p) : read_fixed(r, p, v->elem);
}

static enum status read_pair(struct reader *r, struct pair *p)
{
    memset(p, 0, sizeof *p);
    struct gguf_value *v = &p->kv.value;
    enum status s = read_name(r, "a key", &p->key_at, &p->kv.key.n);
    if (!s) s = read_type(r, p, &v->type);
    if (s) return s;
    p->kv.pos = r->c.pos;
    if (v->type == GGUF_ARRAY) return read_array(r, p);
    v->elem = v->type;
    v->n = 1;
    if (v->type != GGUF_STRING) return read_fixed(r, p, v->type);
    return read_str(r, &p->data_at, &v->bytes) ? OK : bad_end(r, "a string");
}

static enum status read_pairs(struct reader *r, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++) {
        if (!grow((void **)&r->kv.v, r->kv.n, &r->kv.cap, sizeof *r->kv.v)) return no_memory(r);
        enum status s = read_pair(r, &r->kv.v[i]);
        if (s) return s;
        r->kv.n++;
    }
    for (uint64_t i = 0; i < n; i++) { /* usable from here on, and again once the buffer is final */
        struct pair *p = &r->kv.v[i];
        p->kv.key.s = (const char *)r->buf + p->key_at;
        p->kv.value.data = r->buf + p->data_at;
    }
    return index_kv(r);
}

static const struct gguf_kv *table_find(const struct kv_table *t, const char *key)
{
    const struct ref *f = find_ref(t->by_name, t->n, key);
    return f ? &t->v[f->at].kv : NULL;
}

/* ---- numbers ------------------------------------------------------------------------------ */

static bool is_signed(enum gguf_type t)
{
    return t == GGUF_I8 || t == GGUF_I16 || t == GGUF_I32 || t == GGUF_I64;
}

static bool is_integer(enum gguf_type t)
{
    return is_signed(t) || t == GGUF_U8 || t == GGUF_U16 || t == GGUF_U32 || t == GGUF_U64;
}

static enum gguf_type elem_type(const struct gguf_value *v)
{
    return v->type == GGUF_ARRAY ? v->elem : v->type;
}

/* Element i, sign-extended to 64 bits; 0 for what is no integer. */
static uint64_t elem_bits(const struct gguf_value *v, uint64_t i)
{
    enum gguf_type t = elem_type(v);
    ASSERT(i < v->n);
    if (!is_integer(t) && t != GGUF_BOOL) return 0;
    int bytes = type_bytes[t];
    uint64_t bits = cursor_le((const uint8_t *)v->data + i * (uint64_t)bytes, bytes);
    uint64_t sign = UINT64_C(1) << (8 * bytes - 1);
    return is_signed(t) ? (bits ^ sign) - sign : bits;
}

uint64_t gguf_elem_u64(const struct gguf_value *v, uint64_t i) { return elem_bits(v, i); }

int64_t gguf_elem_i64(const struct gguf_value *v, uint64_t i) { return (int64_t)elem_bits(v, i); }

double gguf_elem_f64(const struct gguf_value *v, uint64_t i)
{
    enum gguf_type t = elem_type(v);
    ASSERT(i < v->n);
    const uint8_t *p = v->data;
    if (t == GGUF_F32) {
        uint32_t u = (uint32_t)cursor_le(p + i * 4, 4);
        float f;
        memcpy(&f, &u, sizeof f);
        return (double)f;
    }
    if (t == GGUF_F64) {
        uint64_t u = cursor_le(p + i * 8, 8);
        double d;
        memcpy(&d, &u, sizeof d);
        return d;
    }
    return is_signed(t) ? (double)gguf_elem_i64(v, i) : (double)gguf_elem_u64(v, i);
}

struct gguf_str gguf_elem_next_str(const struct gguf_value *v, uint64_t *cursor)
{
    struct gguf_str s = {NULL, 0};
    if (v->type != GGUF_ARRAY || v->elem != GGUF_STRING || *cursor >= v->bytes) return s;
    const uint8_t *p = (const uint8_t *)v->data + *cursor;
    s.n = cursor_le(p, 8); /* open has walked this array: it fits */
    s.s = (const char *)p + 8;
    *cursor += 8 + s.n;
    return s;
}

static bool value_u64(const struct gguf_value *v, uint64_t *out)
{
    if (!is_integer(v->type) || (is_signed(v->type) && gguf_elem_i64(v, 0) < 0)) return false;
    *out = gguf_elem_u64(v, 0);
    return true;
}

/* An unsigned number that the container itself uses. */
static enum status own_u64(struct reader *r, const char *key, uint64_t dflt, uint64_t *out)
{
    const struct gguf_kv *kv = table_find(&r->kv, key);
    *out = dflt;
    if (!kv || value_u64(&kv->value, out)) return OK;
    return bad(r, ERR_FORMAT, kv->pos, "key '%s' must be an unsigned number: the file is damaged",
               key);
}

/* ---- the tensor directory ----------------------------------------------------------------- */

static struct printable entry_text(const struct reader *r, const struct entry *t)
{
    return printable(r->buf + t->name_at, t->t.name.n);
}

static enum status read_dims(struct reader *r, struct entry *t)
{
    uint64_t pos = r->c.pos, weights = 1;
    uint32_t n_dims = cursor_u32(&r->c);
    if (r->c.failed) return bad_end(r, "a tensor");
    if (n_dims < 1 || n_dims > GGUF_DIMS)
        return bad(r, ERR_FORMAT, pos,
                   "tensor '%s' has %" PRIu32 " dimensions, possible are 1 to %d: the file is "
                   "damaged",
                   entry_text(r, t).s, n_dims, GGUF_DIMS);
    t->t.n_dims = (int)n_dims;
    t->dims_at = r->c.pos;
    for (uint32_t i = 0; i < GGUF_DIMS; i++) {
        pos = r->c.pos;
        uint64_t d = t->t.dim[i] = i < n_dims ? cursor_u64(&r->c) : 1;
        if (r->c.failed) return bad_end(r, "a tensor");
        if (!d || d > (uint64_t)INT64_MAX / weights)
            return bad(r, ERR_FORMAT, pos,
                       "tensor '%s' has dimension %" PRIu64 ": the file is damaged",
                       entry_text(r, t).s, d);
        weights *= d;
    }
    return OK;
}

static enum status count_bytes(struct reader *r, struct entry *t)
{
    const struct qtype_info *q = qtype_in_files(t->t.type);
    if (!q) return OK; /* whoever loads it will say so */
    uint64_t block = (uint64_t)q->block, n = t->t.dim[0] / block;
    if (t->t.dim[0] % block)
        return bad(r, ERR_FORMAT, t->dims_at,
                   "tensor '%s' has %" PRIu64 " columns, type %s needs a multiple of %d: the "
                   "file is damaged",
                   entry_text(r, t).s, t->t.dim[0], q->name, q->block);
    for (int i = 1; i < GGUF_DIMS; i++) n *= t->t.dim[i];
    if (n > (uint64_t)INT64_MAX / (uint64_t)q->block_bytes)
        return bad(r, ERR_FORMAT, t->dims_at, "tensor '%s' is too large: the file is damaged",
                   entry_text(r, t).s);
    t->t.bytes = n * (uint64_t)q->block_bytes;
    return OK;
}

static enum status read_entry(struct reader *r, struct entry *t)
{
    memset(t, 0, sizeof *t);
    enum status s = read_name(r, "a tensor", &t->name_at, &t->t.name.n);
    if (!s) s = read_dims(r, t);
    if (s) return s;
    t->t.type = cursor_u32(&r->c);
    t->offset_at = r->c.pos;
    t->t.offset = cursor_u64(&r->c);
    t->t.shard = r->g->n_shards - 1;
    if (r->c.failed) return bad_end(r, "a tensor");
    if (t->t.offset % r->alignment)
        return bad(r, ERR_FORMAT, t->offset_at,
                   "tensor '%s' starts at offset %" PRIu64 ", not a multiple of the alignment "
                   "%" PRIu32 ": the file is damaged",
                   entry_text(r, t).s, t->t.offset, r->alignment);
    return count_bytes(r, t);
}

static enum status read_directory(struct reader *r, uint64_t n)
{
    struct gguf *g = r->g;
    for (uint64_t i = 0; i < n; i++) {
        if (!grow((void **)&g->tensors, g->n_tensors, &g->tensors_cap, sizeof *g->tensors))
            return no_memory(r);
        enum status s = read_entry(r, &g->tensors[g->n_tensors]);
        if (s) return s;
        g->n_tensors++;
    }
    return OK;
}

/* Offsets become absolute; all data must lie inside the file. */
static enum status place_data(struct reader *r)
{
    struct gguf *g = r->g;
    uint64_t start = (r->c.pos + r->alignment - 1) / r->alignment * r->alignment, last_end = 0;
    const struct entry *last = NULL;
    for (uint64_t i = r->first_tensor; i < g->n_tensors; i++) {
        struct entry *t = &g->tensors[i];
        if (t->t.offset > (uint64_t)INT64_MAX - start ||
            t->t.bytes > (uint64_t)INT64_MAX - start - t->t.offset)
            return bad(r, ERR_FORMAT, t->offset_at,
                       "tensor '%s' starts at offset %" PRIu64 ": the file is damaged, download "
                       "it again",
                       entry_text(r, t).s, t->t.offset);
        t->t.offset += start;
        uint64_t end = t->t.offset + t->t.bytes;
        if (!last || end > last_end) {
            last = t;
            last_end = end;
        }
    }
    if (!last || last_end <= r->file.size) return OK;
    return bad(r, ERR_FORMAT, r->file.size,
               "the file is truncated: it needs %" PRIu64 " bytes (tensor '%s' ends there), the "
               "file has %" PRIu64 ": download it again",
               last_end, entry_text(r, last).s, r->file.size);
}

static int compare_places(const void *pa, const void *pb)
{
    const struct entry *a = *(const struct entry *const *)pa, *b = *(const struct entry *const *)pb;
    if (a->t.offset != b->t.offset) return a->t.offset < b->t.offset ? -1 : 1;
    return (a->offset_at > b->offset_at) - (a->offset_at < b->offset_at);
}

static enum status check_overlap(struct reader *r)
{
    struct gguf *g = r->g;
    uint64_t n = g->n_tensors - r->first_tensor, end = 0;
    const struct entry **v = malloc((size_t)(n ? n : 1) * sizeof(*v)), *before = NULL;
    if (!v) return no_memory(r);
    for (uint64_t i = 0; i < n; i++) v[i] = &g->tensors[r->first_tensor + i];
    qsort(v, (size_t)n, sizeof *v, compare_places);
    enum status s = OK;
    for (uint64_t i = 0; !s && i < n; i++) {
        const struct gguf_tensor *t = &v[i]->t;
        if (before && t->bytes && t->offset < end)
            s = bad(r, ERR_FORMAT, v[i]->offset_at,
                    "tensors '%s' and '%s' overlap at byte %" PRIu64 " of the file: it is "
                    "damaged",
                    entry_text(r, before).s, entry_text(r, v[i]).s, t->offset);
        if (t->offset + t->bytes > end) {
            end = t->offset + t->bytes;
            before = v[i];
        }
    }
    free(v);
    return s;
}

/* ---- one part ----------------------------------------------------------------------------- */

/* What people try to open instead of a model. */
static const char *magic_hint(const uint8_t *p, uint64_t n)
{
    static const struct {
        const char *start, *hint;
    } known[] = {
        {"version https://git-lfs", "this is a Git LFS pointer: run git lfs pull"},
        {"<", "this looks like a web page: download the file itself"},
        {"{", "this looks like JSON: give the .gguf file"},
        {"PK", "this is a PyTorch or zip file: convert it to GGUF"},
        {"lmgg", "this is an old GGML file: convert the model to GGUF"},
        {"fmgg", "this is an old GGML file: convert the model to GGUF"},
        {"tjgg", "this is an old GGML file: convert the model to GGUF"},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        size_t len = strlen(known[i].start);
        if (n >= len && !memcmp(p, known[i].start, len)) return known[i].hint;
    }
    return "give a .gguf file, or download it again";
}

static enum status read_version(struct reader *r, uint32_t *version)
{
    uint32_t v = *version = cursor_u32(&r->c);
    if (r->c.failed) return bad_end(r, "the version");
    if (v == 2 || v == 3) return OK;
    if (v == 1)
        return bad(r, ERR_UNSUPPORTED, 4, "unsupported GGUF version 1: convert the model again");
    if (v && !(v & 0xffff))
        return bad(r, ERR_UNSUPPORTED, 4,
                   "this is a big-endian GGUF file: convert it to little-endian "
                   "(gguf_convert_endian.py of llama.cpp)");
    return bad(r, ERR_UNSUPPORTED, 4,
               "unsupported GGUF version %" PRIu32 ", known are 2 and 3: update Tessera or convert "
               "the model again",
               v);
}

/* A count that could be believed: what is left of the file can hold that many. */
static enum status check_count(struct reader *r, const char *what, uint64_t pos, uint64_t n,
                               uint64_t least, uint64_t most)
{
    if (n > cursor_left(&r->c) / least)
        return bad(r, ERR_FORMAT, pos,
                   "the file says it has %" PRIu64 " %s, its %" PRIu64 " bytes cannot hold them: "
                   "it is truncated or damaged, download it again",
                   n, what, r->file.size);
    if (n > most)
        return bad(r, ERR_UNSUPPORTED, pos,
                   "the file has %" PRIu64 " %s, supported are %" PRIu64 ": this is no model", n,
                   what, most);
    return OK;
}

static enum status read_counts(struct reader *r, uint64_t *n_kv, uint64_t *n_tensors)
{
    uint64_t pos = r->c.pos;
    *n_tensors = cursor_u64(&r->c);
    *n_kv = cursor_u64(&r->c);
    if (r->c.failed) return bad_end(r, "the header");
    enum status s = check_count(r, "tensors", pos, *n_tensors, TENSOR_MIN_BYTES,
                                TENSORS_MAX - r->g->n_tensors);
    return s ? s : check_count(r, "keys", pos + 8, *n_kv, KV_MIN_BYTES, KV_MAX);
}

static enum status read_magic(struct reader *r)
{
    if (!r->file.size)
        return bad(r, ERR_FORMAT, 0, "the file is empty: download it again");
    uint64_t n = r->c.size < 32 ? r->c.size : 32;
    if (!cursor_need(&r->c, n)) return bad_end(r, "the header");
    if (n < 4 || memcmp(r->buf, "GGUF", 4))
        return bad(r, ERR_FORMAT, 0, "not a GGUF file: %s", magic_hint(r->buf, n));
    (void)cursor_skip(&r->c, 4);
    return OK;
}

static enum status read_alignment(struct reader *r)
{
    uint64_t a;
    enum status s = own_u64(r, "general.alignment", DEFAULT_ALIGNMENT, &a);
    if (s) return s;
    if (a && !(a & (a - 1)) && a <= UINT32_C(1) << 31) {
        r->alignment = (uint32_t)a;
        return OK;
    }
    return bad(r, ERR_FORMAT, table_find(&r->kv, "general.alignment")->pos,
               "general.alignment is %" PRIu64 ", not a power of two: the file is damaged", a);
}

static enum status parse_part(struct reader *r, uint32_t *version)
{
    uint64_t n_kv, n_tensors;
    enum status s = read_magic(r);
    if (!s) s = read_version(r, version);
    if (!s) s = read_counts(r, &n_kv, &n_tensors);
    if (!s) s = read_pairs(r, n_kv);
    if (!s) s = read_alignment(r);
    if (!s) s = read_directory(r, n_tensors);
    if (!s) s = place_data(r);
    return s ? s : check_overlap(r);
}

/* Cuts the buffer to the header, and turns positions into pointers. */
static void settle(struct reader *r)
{
    struct gguf *g = r->g;
    uint8_t *p = realloc(r->buf, (size_t)r->c.pos);
    if (p) r->buf = p;
    g->header_bytes += r->c.pos;
    for (uint64_t i = 0; i < r->kv.n; i++) {
        struct pair *kv = &r->kv.v[i];
        kv->kv.key.s = (const char *)r->buf + kv->key_at;
        kv->kv.value.data = r->buf + kv->data_at;
    }
    for (uint64_t i = 0; i < r->kv.n; i++) {
        struct ref *f = &r->kv.by_name[i];
        f->name = r->kv.v[f->at].kv.key;
    }
    for (uint64_t i = r->first_tensor; i < g->n_tensors; i++)
        g->tensors[i].t.name.s = (const char *)r->buf + g->tensors[i].name_at;
}

static void kv_table_free(struct kv_table *t)
{
    free(t->v);
    free(t->by_name);
    memset(t, 0, sizeof *t);
}

/* Adds a part's header to g and leaves its keys in r->kv; close_part follows in any case. */
static enum status read_part(struct reader *r, const char *path, const struct osfile_ops *ops,
                             uint32_t *version)
{
    struct gguf *g = r->g;
    r->first_tensor = g->n_tensors;
    r->alignment = DEFAULT_ALIGNMENT;
    if (!grow((void **)&g->shards, (uint64_t)g->n_shards, &g->shards_cap, sizeof *g->shards))
        return err_set(r->e, ERR_MEMORY, "no memory to open %s", path_tail(path));
    enum status s = osfile_open(&r->file, path, 0, ops, r->e);
    if (s) return s;
    struct shard *part = &g->shards[g->n_shards++];
    memset(part, 0, sizeof *part);
    part->file_bytes = r->file.size;
    part->path = strdup(path);
    if (!part->path) return no_memory(r);
    uint64_t most = HEADER_MAX - g->header_bytes; /* a limit for the whole set */
    r->c.size = r->file.size < most ? r->file.size : most;
    r->buf = malloc((size_t)r->c.size + 1);
    if (!r->buf) return no_memory(r);
    r->c.more = read_more;
    r->c.arg = r;
    s = parse_part(r, version);
    if (!s) settle(r);
    part->header = r->buf;
    r->buf = NULL;
    return s;
}

static void close_part(struct reader *r)
{
    if (r->file.path && r->file.ops->drop)
        r->file.ops->drop(r->file.fd, 0, r->c.have + READ_AHEAD);
    if (r->file.path) osfile_close(&r->file);
    free(r->buf);
    kv_table_free(&r->kv);
}

/* ---- split sets --------------------------------------------------------------------------- */

enum { SPLIT_MAX = 99999, SUFFIX_BYTES = 40 };

static void split_suffix(char *buf, uint64_t part, uint64_t count)
{
    (void)snprintf(buf, SUFFIX_BYTES, "-%05" PRIu64 "-of-%05" PRIu64 ".gguf", part, count);
}

/* The file name of the set's part (1..count) when `path` is part `own` (NULL: out of memory, or
 * path does not follow the pattern, then *follows is false). */
static char *sister(const char *path, uint64_t own, uint64_t part, uint64_t count, bool *follows)
{
    char mine[SUFFIX_BYTES], theirs[SUFFIX_BYTES];
    split_suffix(mine, own, count);
    split_suffix(theirs, part, count);
    size_t n = strlen(path), tail = strlen(mine);
    *follows = n > tail && !strcmp(path + n - tail, mine);
    char *p = *follows ? strdup(path) : NULL;
    if (p) memcpy(p + n - tail, theirs, tail);
    return p;
}

static enum status not_first(struct reader *r, uint64_t no, uint64_t count)
{
    bool follows;
    char *first = sister(r->file.path, no + 1, 1, count, &follows), ending[SUFFIX_BYTES];
    split_suffix(ending, 1, count);
    enum status s = bad(r, ERR_FORMAT, table_find(&r->kv, "split.no")->pos,
                        "this is part %" PRIu64 " of %" PRIu64 ": open the first part, %s%s",
                        no + 1, count, first ? "" : "its name ends in ",
                        first ? path_tail(first) : ending);
    free(first);
    return s;
}

static enum status read_split(struct reader *r, uint64_t *no, uint64_t *count)
{
    enum status s = own_u64(r, "split.no", 0, no);
    if (!s) s = own_u64(r, "split.count", 1, count);
    if (s) return s;
    if (!*count) *count = 1;
    if (*count <= SPLIT_MAX && *no < *count) return OK;
    const struct gguf_kv *kv = table_find(&r->kv, *count > SPLIT_MAX ? "split.count" : "split.no");
    return bad(r, ERR_FORMAT, kv->pos,
               "the file says it is part number %" PRIu64 " (from 0) of %" PRIu64 ": it is damaged",
               *no, *count);
}

static enum status check_sister(struct reader *r, uint32_t version, uint64_t part, uint64_t count)
{
    uint64_t no, n;
    enum status s = read_split(r, &no, &n);
    if (s) return s;
    if (version == r->g->version && no == part - 1 && n == count) return OK;
    const struct gguf_kv *kv = table_find(&r->kv, "split.no");
    return bad(r, ERR_FORMAT, kv ? kv->pos : 0,
               "this is part %" PRIu64 " of %" PRIu64 " by its own keys, but its name says part "
               "%" PRIu64 " of %" PRIu64 ": the files are mixed up, download them again",
               no + 1, n, part, count);
}

static enum status open_sister(struct gguf *g, const struct osfile_ops *ops, uint64_t part,
                               uint64_t count, struct err *e)
{
    bool follows;
    uint32_t version;
    const char *first = g->shards[0].path;
    char *path = sister(first, 1, part, count, &follows);
    if (!path) return err_set(e, ERR_MEMORY, "no memory to open part %" PRIu64, part);
    struct err why;
    err_clear(&why);
    struct reader r = {.g = g, .e = &why};
    enum status s = read_part(&r, path, ops, &version);
    if (!s) s = check_sister(&r, version, part, count);
    bool opened = r.file.path != NULL;
    close_part(&r);
    if (s && !opened && s == ERR_IO)
        s = err_set(e, s, "part %" PRIu64 " of %" PRIu64 " is missing: %.300s: all parts must lie "
                    "in the same folder",
                    part, count, why.msg);
    else if (s)
        s = err_set_at(e, s, why.pos, "%s", why.msg);
    free(path);
    return s;
}

/* Opens the parts after the first, whose keys are g->kv. */
static enum status open_sisters(struct gguf *g, const struct osfile_ops *ops, uint64_t count,
                                uint64_t n_tensors, struct err *e)
{
    const char *first = g->shards[0].path;
    for (uint64_t part = 2; part <= count; part++) {
        enum status s = open_sister(g, ops, part, count, e);
        if (s) return s;
    }
    if (n_tensors == UINT64_MAX || n_tensors == g->n_tensors) return OK;
    uint64_t pos = table_find(&g->kv, "split.tensors.count")->pos;
    return err_set_at(e, ERR_FORMAT, pos,
                      "%s, byte %" PRIu64 ": the set should have %" PRIu64 " tensors, its parts "
                      "have %" PRIu64 ": download them again",
                      path_tail(first), pos, n_tensors, g->n_tensors);
}

/* The first part: what it says about the set. */
static enum status check_first(struct reader *r, uint64_t *count, uint64_t *n_tensors)
{
    uint64_t no;
    bool follows = true;
    enum status s = read_split(r, &no, count);
    if (!s) s = own_u64(r, "split.tensors.count", UINT64_MAX, n_tensors);
    if (s || *count == 1) return s;
    if (no) return not_first(r, no, *count);
    char ending[SUFFIX_BYTES];
    split_suffix(ending, 1, *count);
    free(sister(r->file.path, 1, 1, *count, &follows));
    if (follows) return OK;
    return bad(r, ERR_FORMAT, table_find(&r->kv, "split.count")->pos,
               "this is the first of %" PRIu64 " parts, so its name must end in %s for the others "
               "to be found: rename it",
               *count, ending);
}

static enum status open_all(struct gguf *g, const char *path, const struct osfile_ops *ops,
                            struct err *e)
{
    uint64_t count = 1, n_tensors = 0;
    struct reader r = {.g = g, .e = e};
    enum status s = read_part(&r, path, ops, &g->version);
    if (!s) s = check_first(&r, &count, &n_tensors);
    if (!s) {
        g->kv = r.kv;
        memset(&r.kv, 0, sizeof r.kv);
    }
    close_part(&r);
    if (!s && count > 1) s = open_sisters(g, ops, count, n_tensors, e);
    return s ? s : index_tensors(g, e);
}

enum status gguf_open(const char *path, const struct osfile_ops *ops, struct gguf **out,
                      struct err *e)
{
    *out = NULL;
    struct gguf *g = calloc(1, sizeof *g);
    if (!g) return err_set(e, ERR_MEMORY, "no memory to open %s", path_tail(path));
    struct err own; /* e may be NULL, or hold an earlier failure */
    err_clear(&own);
    enum status s = open_all(g, path, ops, &own);
    if (s) {
        gguf_close(g);
        return err_set_at(e, s, own.pos, "%s", own.msg);
    }
    *out = g;
    return OK;
}

void gguf_close(struct gguf *g)
{
    if (!g) return;
    for (int i = 0; i < g->n_shards; i++) {
        free(g->shards[i].path);
        free(g->shards[i].header);
    }
    free(g->shards);
    kv_table_free(&g->kv);
    free(g->tensors);
    free(g->tensors_by_name);
    free(g);
}

/* ---- access ------------------------------------------------------------------------------- */

const char *gguf_path(const struct gguf *g, int shard)
{
    ASSERT(shard >= 0 && shard < g->n_shards);
    return g->shards[shard].path;
}

int gguf_n_shards(const struct gguf *g) { return g->n_shards; }
uint32_t gguf_version(const struct gguf *g) { return g->version; }
uint64_t gguf_n_kv(const struct gguf *g) { return g->kv.n; }
uint64_t gguf_n_tensors(const struct gguf *g) { return g->n_tensors; }

uint64_t gguf_file_bytes(const struct gguf *g)
{
    uint64_t sum = 0;
    for (int i = 0; i < g->n_shards; i++) sum += g->shards[i].file_bytes;
    return sum;
}

const struct gguf_kv *gguf_kv_at(const struct gguf *g, uint64_t i)
{
    ASSERT(i < g->kv.n);
    return &g->kv.v[i].kv;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, uint64_t i)
{
    ASSERT(i < g->n_tensors);
    return &g->tensors[i].t;
}

const struct gguf_kv *gguf_find(const struct gguf *g, const char *key)
{
    return table_find(&g->kv, key);
}

const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name)
{
    const struct ref *f = find_ref(g->tensors_by_name, g->n_tensors, name);
    return f ? &g->tensors[f->at].t : NULL;
}

static enum status missing(const struct gguf *g, const char *key, struct err *e)
{
    return err_set(e, ERR_MISSING, "%s: key '%s' is missing", path_tail(g->shards[0].path), key);
}

static enum status unsuited(const struct gguf *g, const struct gguf_kv *kv, const char *wanted,
                            struct err *e)
{
    const struct gguf_value *v = &kv->value;
    bool array = v->type == GGUF_ARRAY;
    return err_set_at(e, ERR_SHAPE, kv->pos, "%s, byte %" PRIu64 ": key '%s' is %s%s, not %s",
                      path_tail(g->shards[0].path), kv->pos, printable_str(kv->key).s,
                      array ? "an array of " : "of type ", gguf_type_name(elem_type(v)), wanted);
}

enum status gguf_get_u64(const struct gguf *g, const char *key, uint64_t *out, struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv) return missing(g, key, e);
    return value_u64(&kv->value, out) ? OK : unsuited(g, kv, "a number from 0 up", e);
}

enum status gguf_get_f32(const struct gguf *g, const char *key, float *out, struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv) return missing(g, key, e);
    if (kv->value.type != GGUF_F32 && kv->value.type != GGUF_F64)
        return unsuited(g, kv, "a float", e);
    double d = gguf_elem_f64(&kv->value, 0);
    if (isfinite(d) && fabs(d) > 0x1.fffffep127) return unsuited(g, kv, "in the range of f32", e);
    *out = (float)d;
    return OK;
}

bool gguf_str_is(struct gguf_str s, const char *word)
{
    return s.n == strlen(word) && !memcmp(s.s, word, s.n);
}

enum status gguf_get_str(const struct gguf *g, const char *key, struct gguf_str *out,
                         struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (!kv) return missing(g, key, e);
    if (kv->value.type != GGUF_STRING) return unsuited(g, kv, "a string", e);
    out->s = kv->value.data;
    out->n = kv->value.bytes;
    return OK;
}

enum status gguf_get_u64_or(const struct gguf *g, const char *key, uint64_t dflt, uint64_t *out,
                            struct err *e)
{
    *out = dflt;
    return gguf_find(g, key) ? gguf_get_u64(g, key, out, e) : OK;
}

enum status gguf_get_f32_or(const struct gguf *g, const char *key, float dflt, float *out,
                            struct err *e)
{
    *out = dflt;
    return gguf_find(g, key) ? gguf_get_f32(g, key, out, e) : OK;
}

enum status gguf_get_bool_or(const struct gguf *g, const char *key, bool dflt, bool *out,
                             struct err *e)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    *out = dflt;
    if (!kv) return OK;
    if (kv->value.type != GGUF_BOOL) return unsuited(g, kv, "a bool", e);
    *out = gguf_elem_u64(&kv->value, 0) != 0;
    return OK;
}
