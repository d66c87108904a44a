/* Parts: the smallest pieces of weights that move, and how they get from a file into memory.
 *
 * A part is {tensor, row range, file extent}: one matrix, so an expert is three of
 * them.  Plans and layers hold part handles (their index), never raw pointers.  A part is read in
 * pieces of whole tiles, about PART_PIECE bytes of file each, and packed for the kernels on arrival
 * (tile_pack); pieces do not overlap, so any thread may place any of them.
 *
 * The table borrows the weight views, owns its list, and is immutable once open.  It reads nothing
 * and holds no weights: residency.h does. */
#ifndef OFFLOAD_PART_H
#define OFFLOAD_PART_H

#include <stdbool.h>

#include "moe/base/err.h"
#include "moe/load/weights.h"

enum { PART_PIECE = 512 << 10 };

struct part_extent {
    int shard;
    uint64_t offset, bytes;
};

struct part {
    int weight;              /* index into the weight views */
    int mat;                 /* which of its matrices */
    int row0, n_rows;        /* rows of that matrix */
    struct part_extent extent;
    uint64_t bytes;          /* in memory */
};

struct part_table {
    const struct weights *weights;
    struct part *part; /* [n_parts], handle = index */
    int n_parts;
    uint64_t bytes;    /* of all parts in memory */
    const struct mm_kernels *kernels; /* of the best tier: they pack */
};

/* ERR_MEMORY. */
enum status part_table_open(struct part_table *t, const struct weights *ws, struct err *e);
void part_table_close(struct part_table *t);

/* Bytes of a row in the file; rows of a piece (whole tiles); bytes in memory of n_rows rows from a
 * tile's first on. */
uint64_t part_row_bytes(const struct weight *w);
int part_piece_rows(const struct weight *w);
uint64_t part_rows_bytes(const struct weight *w, int n_rows);

/* Places rows row0 .. of a matrix, as they are in the file, into dst, which is where row 0 of the
 * matrix would lie; row0 is a tile's first row. */
void part_pack(const struct part_table *t, const struct weight *w, int row0, int n_rows,
               const char *rows, char *dst);

/* Every value of a float type, every scale of a quantised one. */
bool part_has_nan(enum qtype type, const char *p, uint64_t bytes);

#endif
