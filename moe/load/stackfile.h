/* Stack files: what a GGUF file says about the levels above its weights (quant/stack.h).
 *
 * A stack file is a model file some of whose matrices are bases, and which ends in one tensor with
 * all levels, in the order in which they are worth loading.  Only standard tensor types are used:
 *
 *   NAME                         I8 [row bytes, rows, matrices]  base of a stacked tensor: rows of
 *                                NEST2 or SIGN1 blocks (quant/README.md)
 *   tessera.stack.levels         I8 [64, n]  64 bytes "TSRSTACK", hash, zeros; then the units
 *   tessera.stack.version        1
 *   tessera.stack.codec          "nested" or "factored"
 *   tessera.stack.rank           of the factored codec
 *   tessera.stack.tensors        names of the stacked tensors
 *   tessera.stack.order          i32 [3 n]: tensor, matrix, level of each unit, as they lie in levels
 *   tessera.stack.floor          so many units at the beginning are always loaded
 *   tessera.stack.hash           u64, the same as in levels: these levels belong to these bases
 *   tessera.stack.curve_units    i32 [k], rising, and
 *   tessera.stack.curve_ppl      f32 [k]: perplexity of the first so many units, measured at build
 *   tessera.stack.curve_text     on this text
 *
 * A unit is one level of one matrix as kernels want it, a multiple of 64 bytes; its size follows from
 * codec and shape.  A file that was cut between two units opens with what is left.
 *
 * Immutable once open; borrows the struct gguf; reads the file once, at open. */
#ifndef MOE_LOAD_STACKFILE_H
#define MOE_LOAD_STACKFILE_H

#include "moe/base/err.h"
#include "moe/load/gguf.h"
#include "quant/stack.h"

enum { STACK_ROW = 64 };

struct stack_tensor {
    const struct gguf_tensor *base;
    int n_cols, n_rows, n_mats;
};

struct stack_unit {
    int32_t tensor, mat, level;
    uint64_t end;                /* in levels, of its bytes */
};

struct stackfile {
    bool present;                /* false: a plain file, all else is zero */
    enum qtype type;             /* of the bases */
    int rank;
    struct stack_tensor *tensor; /* [n_tensors] */
    int n_tensors;
    struct stack_unit *unit;     /* [n_units], those that are in the file */
    int n_units, n_floor, n_cut; /* n_cut: missing at the end */
    const struct gguf_tensor *levels;
    uint64_t n_rows;             /* of levels that are in the file, STACK_ROW bytes each */
    uint64_t hash;
    int *curve_units;            /* [n_curve] */
    float *curve_ppl;
    int n_curve;
    struct gguf_str curve_text;
};

/* Where levels begin to be units. */
enum { STACK_HEAD = 64 };

/* Reads and checks what g says.  ERR_FORMAT with the file, what is wrong and the byte or the unit. */
enum status stackfile_open(struct stackfile *s, const struct gguf *g, struct err *e);
void stackfile_close(struct stackfile *s);

/* Where the first n units end, those that are in the file; units within so many bytes of levels. */
uint64_t stackfile_end(const struct stackfile *s, int n);
int stackfile_units_in(const struct stackfile *s, uint64_t bytes);

/* The perplexity expected with so many units, between two measured points in proportion to bytes;
 * 0 = not measured. */
double stackfile_ppl(const struct stackfile *s, int n_units);

#endif
