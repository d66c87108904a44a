/* Requantising a model file: every matrix to another weight type, the rest as it is.
 *
 * Offline tool code: reads the source in pieces, never a whole tensor, and writes aside and renames
 * at the end.  Norms, biases, routers and other vectors keep their type (routers stay f32).  A
 * matrix whose columns are no multiple of the wanted type's block takes the fallback that GGUF
 * tools take (Q4_K -> Q5_0 where there is an encoder for it, else Q8_0; not a multiple of 32: F16).
 * One caller thread; encoding runs on the given pool. */
#ifndef QUANT_BUILD_REQUANT_H
#define QUANT_BUILD_REQUANT_H

#include <stdbool.h>

#include "moe/base/thread.h"
#include "moe/load/gguf.h"
#include "quant/qtype.h"

struct requant_tensor {
    const struct gguf_tensor *in;
    enum qtype type;        /* what it becomes */
    uint64_t bytes;         /* what it takes then */
    bool kept;              /* copied as it is */
    bool fallback;          /* not the type asked for, because of its columns */
};

struct requant {
    const struct gguf *in;
    struct requant_tensor *tensor; /* [n] in file order */
    uint64_t n, bytes_in, bytes_out;
};

/* Decides every tensor's type.  ERR_UNSUPPORTED for a type without an encoder, or a tensor whose
 * type cannot be read. */
enum status requant_plan(struct requant *r, const struct gguf *in, enum qtype type, struct err *e);
void requant_free(struct requant *r);

/* Writes the file; progress may be NULL and cancels by returning false. */
enum status requant_write(const struct requant *r, const char *out, struct pool *pool,
                          bool (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                          struct err *e);

#endif
