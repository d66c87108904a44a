/* Weight views: which tensors of a file a model uses, with the shape it expects of them.
 *
 * An architecture binds tensors by name; the view remembers where their bytes are and how they will
 * lie in memory, and nothing else: it reads no weights and holds no pointer to any.  Every mismatch
 * is an error that names the file, the tensor and the two shapes.
 *
 * One thread builds the list; afterwards it is immutable.  Borrows the struct gguf. */
#ifndef MOE_LOAD_WEIGHTS_H
#define MOE_LOAD_WEIGHTS_H

#include <stdbool.h>

#include "moe/base/err.h"
#include "moe/load/gguf.h"
#include "quant/qtype.h"

enum weight_layout {
    WEIGHT_TILES,  /* interleaved tiles of quant/mm.h: matrices that are multiplied */
    WEIGHT_ROWS,   /* GGUF rows as they are: tables that are only looked up */
    WEIGHT_VECTOR, /* converted to f32 on arrival: norms, biases */
};

struct weight {
    char name[64];
    enum qtype type;
    enum weight_layout layout;
    int n_cols, n_rows; /* of one matrix: input and output width; vectors: n_rows of n_cols */
    int row0, n_all;    /* where the rows lie in the file's matrix */
    int n_mats;         /* experts, else 1 */
    int first_part;     /* part of matrix m is first_part + m (offload/part.h) */
    const struct gguf_tensor **src; /* one 3-D tensor, or n_mats 2-D ones (old Mixtral files) */
    int n_src;
    uint64_t mat_file_bytes; /* of one matrix in the file */
    uint64_t mat_bytes;      /* of one matrix in memory */
};

/* Tensors "blk.N.<name>" of layers N >= from, of any name if it is NULL. */
struct weight_skip {
    int from;
    const char *name;
};

enum { WEIGHT_SKIPS = 4 };

struct weights {
    const struct gguf *file;
    struct weight *at; /* [n] */
    int n, cap;
    int n_parts;
    enum qtype base;   /* not F32: tensors of I8 are bases of a stack, of this type (quant/stack.h) */
    int n_skips;
    struct weight_skip skip[WEIGHT_SKIPS]; /* known, but need not be bound */
};

void weights_init(struct weights *ws, const struct gguf *file);
void weights_free(struct weights *ws);

struct weight_shape {
    enum weight_layout layout;
    int n_cols, n_rows, n_mats;
    int row0, n_all; /* rows row0 .. of matrices that have n_all rows (gate and up in one tensor);
                        n_all 0 = n_rows, the whole */
    int n_stacked;   /* the tensor is 3-D: this many matrices, taken as one of n_rows in all */
};

/* Binds the tensor of that name and returns its index, or -1 with *e set (ERR_MISSING, ERR_SHAPE,
 * ERR_UNSUPPORTED).  Binding a tensor twice returns the first index; asking for WEIGHT_ROWS of one
 * already bound as WEIGHT_TILES shares the tiles (tied embeddings). */
int weights_bind(struct weights *ws, struct weight_shape shape, const char *name, struct err *e);

/* Binds n_mats tensors whose names are made from fmt with the matrix number (its only %d). */
int weights_bind_split(struct weights *ws, struct weight_shape shape, const char *name,
                       const char *prefix, const char *suffix, struct err *e);

/* Tensors that need not be bound: layers behind the last one that runs (next-token prediction),
 * older forms of others that are there too, leftovers.  Borrows the name. */
void weights_skip(struct weights *ws, int from, const char *name);

/* Every tensor of the file must have been bound: one that was not would change what the model says.
 * ERR_UNSUPPORTED names the first. */
enum status weights_check_all_used(const struct weights *ws, struct err *e);

/* Binds a tensor of bytes [n_cols, n_rows] that is no weight by itself: the levels of a stack. */
int weights_bind_bytes(struct weights *ws, const char *name, int n_cols, int n_rows, struct err *e);

bool weights_has(const struct weights *ws, const char *name);

#endif
