/* GGUF: the container of model files, versions 2 and 3, split files included; and its writer.
 *
 * gguf_open() reads the header only (key-value pairs and the tensor directory) and checks every
 * length, offset, count and type in it before anything is returned; iterating then hands out
 * pointers borrowed from that copy, valid until gguf_close().  No file stays open or mapped:
 * callers read tensor data, {shard, offset, bytes}, through moe/base/osfile.h.
 *
 * Layout (little endian):
 *   "GGUF" | u32 version | u64 n_tensors | u64 n_kv
 *   n_kv times      string key | u32 type | value           string = u64 length, bytes
 *   n_tensors times string name | u32 n_dims | u64 dim[n_dims] | u32 type | u64 offset
 *   padding to general.alignment (default 32), then the data that offsets count from
 *
 * A struct gguf is immutable after open: any thread may read it. */
#ifndef MOE_LOAD_GGUF_H
#define MOE_LOAD_GGUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe/base/err.h"
#include "moe/base/osfile.h"

enum gguf_type {
    GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL,
    GGUF_STRING, GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64, GGUF_TYPE_N
};

struct gguf_str {
    const char *s; /* borrowed; NOT terminated, may hold any byte */
    uint64_t n;
};

/* Whether the text is `word`. */
bool gguf_str_is(struct gguf_str s, const char *word);

struct gguf_value {
    enum gguf_type type;       /* GGUF_ARRAY: see elem */
    enum gguf_type elem;       /* element type of an array */
    uint64_t n;                /* elements of an array, else 1 */
    const void *data;          /* borrowed little-endian bytes, unaligned */
    uint64_t bytes;            /* of data; of a string: its length */
};

struct gguf_kv {
    struct gguf_str key;
    struct gguf_value value;
    uint64_t pos; /* byte of the value (of an array: of its element type), for messages */
};

enum { GGUF_DIMS = 4, GGUF_TENSOR_I8 = 24 };

struct gguf_tensor {
    struct gguf_str name;
    uint32_t type;           /* raw id: may be one that quant/qtype.h does not know */
    int n_dims;              /* 1..4 */
    uint64_t dim[GGUF_DIMS]; /* dim[0] = columns (contiguous); unused dims are 1 */
    int shard;               /* which file of a split set */
    uint64_t offset;         /* absolute byte in that file */
    uint64_t bytes;          /* 0 when the type is not known */
};

struct gguf;

/* Opens path, and its sisters when it is part of a split set (split.count > 1; the first part
 * must be the one named; the keys are the first part's).  *out NULL on failure:
 *   ERR_IO           cannot be opened or read; a part is missing
 *   ERR_FORMAT       malformed or truncated; err.pos is the byte (where data is cut off: the
 *                    file's size)
 *   ERR_UNSUPPORTED  version 1 or unknown, big-endian, arrays of arrays, or larger than any model:
 *                    a header over 256 MiB, over 65,536 keys or 1,048,576 tensors
 *   ERR_MEMORY
 * Guaranteed afterwards: names are unique and not empty; dims are positive; the bytes of every
 * tensor whose type is known lie inside its file, aligned, and no two overlap; bools are 0 or 1.
 * NOT checked: what keys mean, whether strings are UTF-8, types without a row in quant/qtype.h. */
enum status gguf_open(const char *path, const struct osfile_ops *ops, struct gguf **out,
                      struct err *e);
void gguf_close(struct gguf *g);

const char *gguf_path(const struct gguf *g, int shard);
int gguf_n_shards(const struct gguf *g);
uint32_t gguf_version(const struct gguf *g);
uint64_t gguf_file_bytes(const struct gguf *g); /* sum over shards */
uint64_t gguf_n_kv(const struct gguf *g);
uint64_t gguf_n_tensors(const struct gguf *g);
const struct gguf_kv *gguf_kv_at(const struct gguf *g, uint64_t i);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, uint64_t i);
const struct gguf_kv *gguf_find(const struct gguf *g, const char *key);            /* or NULL */
const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name); /* or NULL */

/* Typed access.  Any integer type converts to another when the value fits; F32 and F64 convert;
 * integers are no floats and no bools.  Missing: ERR_MISSING naming the key; wrong type or range:
 * ERR_SHAPE with the byte. */
enum status gguf_get_u64(const struct gguf *g, const char *key, uint64_t *out, struct err *e);
enum status gguf_get_f32(const struct gguf *g, const char *key, float *out, struct err *e);
enum status gguf_get_str(const struct gguf *g, const char *key, struct gguf_str *out,
                         struct err *e);
/* With a default for a missing key; a present key of a wrong type is still an error. */
enum status gguf_get_u64_or(const struct gguf *g, const char *key, uint64_t dflt, uint64_t *out,
                            struct err *e);
enum status gguf_get_f32_or(const struct gguf *g, const char *key, float dflt, float *out,
                            struct err *e);
enum status gguf_get_bool_or(const struct gguf *g, const char *key, bool dflt, bool *out,
                             struct err *e);

/* Array elements (or a scalar, i = 0); i < value->n.  Integers and bools convert to each other as
 * C casts do, and to double; what does not suit (a string, a float as integer) gives 0, so check
 * value->elem first where the file is not trusted. */
uint64_t gguf_elem_u64(const struct gguf_value *v, uint64_t i);
int64_t gguf_elem_i64(const struct gguf_value *v, uint64_t i);
double gguf_elem_f64(const struct gguf_value *v, uint64_t i);
/* Strings of an array have no index: walk them.  *cursor starts at 0; s is NULL after the last. */
struct gguf_str gguf_elem_next_str(const struct gguf_value *v, uint64_t *cursor);

/* "u32", "string", "array" ... */
const char *gguf_type_name(enum gguf_type t);

/* ---- writer ------------------------------------------------------------------------------
 * Collect keys and tensor descriptions, then stream the data in the same order:
 *   gguf_writer_new, gguf_put_*..., gguf_put_tensor..., gguf_writer_begin(path),
 *   gguf_writer_data(bytes) for each tensor in order (any number of pieces), gguf_writer_end.
 * The file is written aside and renamed at the end; close without end leaves nothing behind.
 * Version 3, alignment 32 unless general.alignment is put before the first tensor; padding is the
 * writer's.  What gguf_open would refuse is refused by begin: ERR_RANGE (names, duplicates),
 * ERR_SHAPE (dims, or bytes that do not suit type and dims).  A failed write (ERR_IO) sticks. */
struct gguf_writer;

struct gguf_writer *gguf_writer_new(void); /* NULL when out of memory */
void gguf_writer_close(struct gguf_writer *w);
/* Keys and strings are copied.  The first failure is kept and reported by begin. */
void gguf_put_u32(struct gguf_writer *w, const char *key, uint32_t v);
void gguf_put_u64(struct gguf_writer *w, const char *key, uint64_t v);
void gguf_put_i32(struct gguf_writer *w, const char *key, int32_t v);
void gguf_put_f32(struct gguf_writer *w, const char *key, float v);
void gguf_put_bool(struct gguf_writer *w, const char *key, bool v);
void gguf_put_str(struct gguf_writer *w, const char *key, const char *s);
void gguf_put_strs(struct gguf_writer *w, const char *key, const struct gguf_str *s, uint64_t n);
/* An array of numbers or bools (one byte each), n elements of type t at data, in the machine's
 * byte order. */
void gguf_put_array(struct gguf_writer *w, const char *key, enum gguf_type t, const void *data,
                    uint64_t n);
/* Copies a pair of an open file as it is. */
void gguf_put_kv(struct gguf_writer *w, const struct gguf_kv *kv);
/* Types without a row in quant/qtype.h may have any number of bytes; readers see 0 for them. */
void gguf_put_tensor(struct gguf_writer *w, const char *name, uint32_t type, int n_dims,
                     const uint64_t *dim, uint64_t bytes);
enum status gguf_writer_begin(struct gguf_writer *w, const char *path, struct err *e);
/* From now on so many bytes of the file wait in the page cache at most (osfile_writer_settle). */
void gguf_writer_keep(struct gguf_writer *w, uint64_t bytes);
enum status gguf_writer_data(struct gguf_writer *w, const void *data, uint64_t bytes,
                             struct err *e);
/* Every tensor must have had its bytes: ERR_RANGE otherwise. */
enum status gguf_writer_end(struct gguf_writer *w, struct err *e);

#endif
