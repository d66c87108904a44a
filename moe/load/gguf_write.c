/* GGUF writer (version 3): see gguf.h.
 *
 * Owns the bytes of the key-value section and of the tensor directory until begin writes them, and
 * the file written aside until end renames it.  Data goes straight through stdio, never collected.
 * Writes nothing that gguf.c would refuse: names, dims, sizes and duplicates are checked before
 * the file is created.  One thread. */
#include <inttypes.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "moe/load/gguf.h"
#include "quant/qtype.h"

enum { VERSION = 3, ALIGNMENT = 32, NAME_MAX_BYTES = 65535 };

struct bytes { /* a byte string that grows */
    uint8_t *p;
    uint64_t n, cap;
};

struct name { /* of a key or tensor; p is owned */
    char *p;
    uint64_t n;
};

struct names {
    struct name *v;
    uint64_t n, cap;
};

struct gguf_writer {
    struct err err; /* the first failure of a put or of a write */
    struct bytes kv, dir;
    struct names keys, tensors;
    uint64_t *bytes; /* [tensors.n] data of each tensor */
    uint64_t bytes_cap;
    uint64_t offset; /* of the next tensor's data */
    uint64_t alignment;
    struct osfile_writer file; /* fp NULL while not begun */
    uint64_t at, done;         /* tensor being written, its bytes so far */
};

/* ---- growing things ----------------------------------------------------------------------- */

static void no_memory(struct gguf_writer *w)
{
    (void)err_set(&w->err, ERR_MEMORY, "no memory to collect the header of a GGUF file");
}

static bool reserve(struct gguf_writer *w, void **p, uint64_t need, uint64_t *cap, size_t size)
{
    if (w->err.code) return false;
    if (need <= *cap) return true;
    uint64_t want = *cap ? *cap * 2 : 64;
    if (want < need) want = need;
    void *q = want > SIZE_MAX / size ? NULL : realloc(*p, (size_t)want * size);
    if (!q) {
        no_memory(w);
        return false;
    }
    *p = q;
    *cap = want;
    return true;
}

static void put_bytes(struct gguf_writer *w, struct bytes *b, const void *data, uint64_t n)
{
    if (n > UINT64_MAX / 4 - b->n) {
        no_memory(w);
        return;
    }
    if (!n || !reserve(w, (void **)&b->p, b->n + n, &b->cap, 1)) return;
    memcpy(b->p + b->n, data, (size_t)n);
    b->n += n;
}

static void put_le(struct gguf_writer *w, struct bytes *b, uint64_t v, int n)
{
    uint8_t le[8];
    for (int i = 0; i < n; i++) le[i] = (uint8_t)(v >> (8 * i));
    put_bytes(w, b, le, (uint64_t)n);
}

static void put_text(struct gguf_writer *w, struct bytes *b, const void *s, uint64_t n)
{
    put_le(w, b, n, 8);
    put_bytes(w, b, s, n);
}

static void put_name(struct gguf_writer *w, struct names *v, const void *s, uint64_t n)
{
    if (!n || n > NAME_MAX_BYTES) {
        (void)err_set(&w->err, ERR_RANGE,
                      "a key or tensor name must have 1 to %d bytes, not %" PRIu64, NAME_MAX_BYTES,
                      n);
        return;
    }
    if (!reserve(w, (void **)&v->v, v->n + 1, &v->cap, sizeof *v->v)) return;
    char *p = malloc((size_t)n);
    if (!p) {
        no_memory(w);
        return;
    }
    memcpy(p, s, (size_t)n);
    v->v[v->n++] = (struct name){p, n};
}

struct gguf_writer *gguf_writer_new(void)
{
    struct gguf_writer *w = calloc(1, sizeof *w);
    if (!w) return NULL;
    err_clear(&w->err);
    w->alignment = ALIGNMENT;
    return w;
}

static void free_names(struct names *v)
{
    for (uint64_t i = 0; i < v->n; i++) free(v->v[i].p);
    free(v->v);
}

void gguf_writer_close(struct gguf_writer *w)
{
    if (!w) return;
    if (w->file.fp) osfile_writer_abort(&w->file);
    free(w->kv.p);
    free(w->dir.p);
    free_names(&w->keys);
    free_names(&w->tensors);
    free(w->bytes);
    free(w);
}

/* ---- keys --------------------------------------------------------------------------------- */

static void put_key(struct gguf_writer *w, const void *key, uint64_t n, enum gguf_type type)
{
    put_name(w, &w->keys, key, n);
    put_text(w, &w->kv, key, n);
    put_le(w, &w->kv, (uint64_t)type, 4);
}

static void put_scalar(struct gguf_writer *w, const char *key, enum gguf_type type, uint64_t v,
                       int n)
{
    put_key(w, key, strlen(key), type);
    put_le(w, &w->kv, v, n);
}

/* The one key whose value the writer must obey itself. */
static void obey_alignment(struct gguf_writer *w, const char *key, uint64_t n, uint64_t v)
{
    static const char name[] = "general.alignment";
    if (n != sizeof name - 1 || memcmp(key, name, sizeof name - 1)) return;
    if (!v || (v & (v - 1)) || v > 1u << 20)
        (void)err_set(&w->err, ERR_RANGE, "general.alignment must be a power of two up to 1 MiB");
    else if (w->tensors.n)
        (void)err_set(&w->err, ERR_RANGE, "general.alignment must be set before any tensor");
    else
        w->alignment = v;
}

void gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t v)
{
    obey_alignment(w, key, strlen(key), v);
    put_scalar(w, key, GGUF_U32, v, 4);
}

void gguf_put_u64(struct gguf_writer *w, const char *key, uint64_t v)
{
    obey_alignment(w, key, strlen(key), v);
    put_scalar(w, key, GGUF_U64, v, 8);
}

void gguf_put_i32(struct gguf_writer *w, const char *key, int32_t v)
{
    obey_alignment(w, key, strlen(key), (uint64_t)v);
    put_scalar(w, key, GGUF_I32, (uint32_t)v, 4);
}

void gguf_put_f32(struct gguf_writer *w, const char *key, float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    put_scalar(w, key, GGUF_F32, u, 4);
}

void gguf_put_bool(struct gguf_writer *w, const char *key, bool v)
{
    put_scalar(w, key, GGUF_BOOL, v, 1);
}

void gguf_put_str(struct gguf_writer *w, const char *key, const char *s)
{
    put_key(w, key, strlen(key), GGUF_STRING);
    put_text(w, &w->kv, s, strlen(s));
}

static void put_array_head(struct gguf_writer *w, const void *key, uint64_t key_n,
                           enum gguf_type elem, uint64_t n)
{
    put_key(w, key, key_n, GGUF_ARRAY);
    put_le(w, &w->kv, (uint64_t)elem, 4);
    put_le(w, &w->kv, n, 8);
}

void gguf_put_strs(struct gguf_writer *w, const char *key, const struct gguf_str *s, uint64_t n)
{
    put_array_head(w, key, strlen(key), GGUF_STRING, n);
    for (uint64_t i = 0; i < n; i++) put_text(w, &w->kv, s[i].s, s[i].n);
}

static int number_bytes(enum gguf_type t)
{
    switch (t) {
    case GGUF_U8: case GGUF_I8: case GGUF_BOOL: return 1;
    case GGUF_U16: case GGUF_I16: return 2;
    case GGUF_U32: case GGUF_I32: case GGUF_F32: return 4;
    case GGUF_U64: case GGUF_I64: case GGUF_F64: return 8;
    default: return 0;
    }
}

/* Numbers in the machine's order, which may not be the file's. */
static uint64_t load_number(const uint8_t *p, int bytes)
{
    uint16_t h;
    uint32_t u;
    uint64_t q;
    switch (bytes) {
    case 1: return *p;
    case 2: memcpy(&h, p, sizeof h); return h;
    case 4: memcpy(&u, p, sizeof u); return u;
    default: memcpy(&q, p, sizeof q); return q;
    }
}

void gguf_put_array(struct gguf_writer *w, const char *key, enum gguf_type t, const void *data,
                    uint64_t n)
{
    int size = number_bytes(t);
    const uint8_t *p = data;
    if (!size) {
        (void)err_set(&w->err, ERR_RANGE, "key '%.80s': an array of %s cannot be put like this",
                      key, gguf_type_name(t));
        return;
    }
    put_array_head(w, key, strlen(key), t, n);
    for (uint64_t i = 0; i < n && !w->err.code; i++) {
        uint64_t v = load_number(p + i * (uint64_t)size, size);
        put_le(w, &w->kv, t == GGUF_BOOL ? v != 0 : v, size);
    }
}

void gguf_put_kv(struct gguf_writer *w, const struct gguf_kv *kv)
{
    const struct gguf_value *v = &kv->value;
    if (v->type != GGUF_ARRAY && v->type != GGUF_STRING)
        obey_alignment(w, kv->key.s, kv->key.n, gguf_elem_u64(v, 0));
    if (v->type == GGUF_ARRAY)
        put_array_head(w, kv->key.s, kv->key.n, v->elem, v->n);
    else
        put_key(w, kv->key.s, kv->key.n, v->type);
    if (v->type == GGUF_STRING) put_le(w, &w->kv, v->bytes, 8);
    put_bytes(w, &w->kv, v->data, v->bytes); /* file order already */
}

/* ---- tensors ------------------------------------------------------------------------------ */

static uint64_t padding(const struct gguf_writer *w, uint64_t n)
{
    return (w->alignment - n % w->alignment) % w->alignment;
}

/* What gguf.c would refuse in a tensor, as a reason; NULL: good. */
static const char *tensor_fault(uint32_t type, int n_dims, const uint64_t *dim, uint64_t bytes)
{
    const struct qtype_info *q = qtype_in_files(type);
    uint64_t n = 1;
    if (n_dims < 1 || n_dims > GGUF_DIMS) return "it must have 1 to 4 dimensions";
    for (int i = 0; i < n_dims; i++) {
        if (!dim[i] || dim[i] > (uint64_t)INT64_MAX / n) return "a dimension is 0 or too large";
        n *= dim[i];
    }
    if (bytes > INT64_MAX) return "too many bytes";
    if (!q) return NULL;
    if (dim[0] % (uint64_t)q->block) return "its columns are not a multiple of the block";
    n /= (uint64_t)q->block;
    return bytes % (uint64_t)q->block_bytes || bytes / (uint64_t)q->block_bytes != n
               ? "its bytes do not suit its type and shape"
               : NULL;
}

void gguf_put_tensor(struct gguf_writer *w, const char *name, uint32_t type, int n_dims,
                     const uint64_t *dim, uint64_t bytes)
{
    const char *fault = tensor_fault(type, n_dims, dim, bytes);
    if (!fault && bytes > (uint64_t)INT64_MAX - w->alignment - w->offset) fault = "too many bytes";
    if (fault) {
        (void)err_set(&w->err, ERR_SHAPE, "cannot write tensor '%.80s': %s", name, fault);
        return;
    }
    if (!reserve(w, (void **)&w->bytes, w->tensors.n + 1, &w->bytes_cap, sizeof *w->bytes)) return;
    w->bytes[w->tensors.n] = bytes;
    put_name(w, &w->tensors, name, strlen(name));
    put_text(w, &w->dir, name, strlen(name));
    put_le(w, &w->dir, (uint64_t)n_dims, 4);
    for (int i = 0; i < n_dims; i++) put_le(w, &w->dir, dim[i], 8);
    put_le(w, &w->dir, type, 4);
    put_le(w, &w->dir, w->offset, 8);
    w->offset += bytes + padding(w, bytes);
}

/* ---- the file ----------------------------------------------------------------------------- */

static int compare_names(const void *pa, const void *pb)
{
    const struct name *a = pa, *b = pb;
    if (a->n != b->n) return a->n < b->n ? -1 : 1;
    return memcmp(a->p, b->p, (size_t)a->n);
}

/* Looks for a name that is there twice, in a sorted copy. */
static void check_names(struct gguf_writer *w, const struct names *v, const char *what)
{
    if (v->n < 2 || w->err.code) return;
    struct name *sorted = malloc((size_t)v->n * sizeof *sorted);
    if (!sorted) {
        no_memory(w);
        return;
    }
    memcpy(sorted, v->v, (size_t)v->n * sizeof *sorted);
    qsort(sorted, (size_t)v->n, sizeof *sorted, compare_names);
    for (uint64_t i = 1; i < v->n; i++) {
        if (compare_names(&sorted[i - 1], &sorted[i])) continue;
        int n = sorted[i].n < 80 ? (int)sorted[i].n : 80;
        (void)err_set(&w->err, ERR_RANGE, "%s '%.*s' was put twice", what, n, sorted[i].p);
        break;
    }
    free(sorted);
}

/* Kept, so that end cannot succeed after it. */
static enum status write_failed(struct gguf_writer *w, int code, struct err *e)
{
    (void)err_set(&w->err, ERR_IO, "cannot write %.300s: %s", w->file.path,
                  strerror(code ? code : EIO));
    return err_set(e, ERR_IO, "%s", w->err.msg);
}

static enum status write_raw(struct gguf_writer *w, const void *data, uint64_t n, struct err *e)
{
    const uint64_t most = w->file.keep ? w->file.keep : n;
    for (uint64_t at = 0; at < n; at += most) {
        const size_t piece = (size_t)(n - at < most ? n - at : most);
        errno = 0;
        if (fwrite((const char *)data + at, 1, piece, w->file.fp) != piece) return write_failed(w, errno, e);
        osfile_writer_settle(&w->file);
    }
    return OK;
}

static enum status write_padding(struct gguf_writer *w, uint64_t n, struct err *e)
{
    static const uint8_t zeros[256];
    enum status s = OK;
    for (uint64_t left = padding(w, n); left && !s;) {
        uint64_t piece = left < sizeof zeros ? left : sizeof zeros;
        s = write_raw(w, zeros, piece, e);
        left -= piece;
    }
    return s;
}

static enum status write_header(struct gguf_writer *w, struct err *e)
{
    struct bytes head = {NULL, 0, 0};
    put_bytes(w, &head, "GGUF", 4);
    put_le(w, &head, VERSION, 4);
    put_le(w, &head, w->tensors.n, 8);
    put_le(w, &head, w->keys.n, 8);
    enum status s = w->err.code ? err_set(e, w->err.code, "%s", w->err.msg) : OK;
    if (!s) s = write_raw(w, head.p, head.n, e);
    if (!s) s = write_raw(w, w->kv.p, w->kv.n, e);
    if (!s) s = write_raw(w, w->dir.p, w->dir.n, e);
    if (!s) s = write_padding(w, head.n + w->kv.n + w->dir.n, e);
    free(head.p);
    return s;
}

/* Ends tensors whose bytes are all there (at once, when they have none). */
static enum status next_tensor(struct gguf_writer *w, struct err *e)
{
    enum status s = OK;
    while (!s && w->at < w->tensors.n && w->done == w->bytes[w->at]) {
        s = write_padding(w, w->done, e);
        w->at++;
        w->done = 0;
    }
    return s;
}

enum status gguf_writer_begin(struct gguf_writer *w, const char *path, struct err *e)
{
    ASSERT(!w->file.fp);
    check_names(w, &w->keys, "key");
    check_names(w, &w->tensors, "tensor");
    if (w->err.code)
        return err_set(e, w->err.code, "cannot write %.200s: %.280s", path, w->err.msg);
    enum status s = osfile_writer_open(&w->file, path, e);
    if (!s) s = write_header(w, e);
    return s ? s : next_tensor(w, e);
}

void gguf_writer_keep(struct gguf_writer *w, uint64_t bytes) { w->file.keep = bytes; }

enum status gguf_writer_data(struct gguf_writer *w, const void *data, uint64_t bytes,
                             struct err *e)
{
    ASSERT(w->file.fp);
    if (!bytes) return OK;
    if (w->at == w->tensors.n || bytes > w->bytes[w->at] - w->done)
        return err_set(e, ERR_RANGE, "cannot write %.300s: more data than tensor %" PRIu64 " has",
                       w->file.path, w->at);
    enum status s = write_raw(w, data, bytes, e);
    w->done += bytes;
    return s ? s : next_tensor(w, e);
}

enum status gguf_writer_end(struct gguf_writer *w, struct err *e)
{
    ASSERT(w->file.fp);
    if (w->err.code) {
        osfile_writer_abort(&w->file);
        return err_set(e, w->err.code, "%s", w->err.msg);
    }
    if (w->at == w->tensors.n) return osfile_writer_commit(&w->file, e);
    const struct name *t = &w->tensors.v[w->at];
    enum status s = err_set(e, ERR_RANGE,
                            "cannot write %.200s: tensor '%.*s' has %" PRIu64 " of %" PRIu64
                            " bytes",
                            w->file.path, t->n < 80 ? (int)t->n : 80, t->p, w->done,
                            w->bytes[w->at]);
    osfile_writer_abort(&w->file);
    return s;
}
