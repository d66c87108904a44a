/* safetensors: the files of Hugging Face checkpoints, one or many with an index.
 *
 * st_open() reads the headers only, of every file that model.safetensors.index.json names (or of
 * model.safetensors alone), and checks all of it before anything is returned.  The files stay open,
 * so that tensors can be read in pieces: st_read().
 *
 * Layout of a file (little endian):
 *   u64 n | n bytes of JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}}
 *   then the data that offsets count from; no gaps, no overlaps, nothing behind it
 *
 * A struct st is immutable after open: any thread may read it. */
#ifndef MOE_LOAD_SAFETENSORS_H
#define MOE_LOAD_SAFETENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "moe/base/err.h"
#include "moe/base/osfile.h"

enum st_type { /* "dtype"; those that weights can have */
    ST_F32, ST_F16, ST_BF16, ST_F8_E4M3, ST_U8,
    ST_OTHER, /* well-formed, nothing that can be converted */
};

enum { ST_DIMS = 4, ST_SHARDS_MAX = 512, ST_TENSORS_MAX = 1 << 20 };

struct st_tensor {
    const char *name; /* borrowed until st_close; not empty, terminated */
    enum st_type type;
    const char *type_name; /* as the file spells it */
    int n_dims;            /* 0..4 */
    uint64_t dim[ST_DIMS]; /* as the file has them: the last is contiguous; unused ones are 1 */
    int shard;
    uint64_t offset; /* absolute byte in its file */
    uint64_t bytes;
};

struct st;

/* Opens the checkpoint in a folder.  *out NULL on failure:
 *   ERR_IO           no checkpoint, a file that the index names is missing or cannot be read
 *   ERR_FORMAT       malformed or truncated, err.pos is the byte; index and files disagree; a name
 *                    in the index that leads out of the folder
 *   ERR_UNSUPPORTED  more than four dimensions, or larger than any model
 *   ERR_MEMORY
 * Guaranteed afterwards: names are unique; sizes follow from types and shapes; the bytes of every
 * tensor lie inside its file and no two overlap. */
enum status st_open(const char *dir, const struct osfile_ops *ops, struct st **out, struct err *e);
void st_close(struct st *s);

int st_n_shards(const struct st *s);
const char *st_path(const struct st *s, int shard);
uint64_t st_bytes(const struct st *s); /* of all tensors */
uint64_t st_n(const struct st *s);
const struct st_tensor *st_at(const struct st *s, uint64_t i); /* sorted by name */
const struct st_tensor *st_find(const struct st *s, const char *name); /* or NULL */

/* Reads n bytes from byte `at` of a tensor and gives the page cache back. */
enum status st_read(const struct st *s, const struct st_tensor *t, void *buf, uint64_t n,
                    uint64_t at, struct err *e);

/* Bytes of one value; 0 for ST_OTHER. */
int st_width(enum st_type type);
/* n values to floats: F32, F16, BF16 exactly; F8_E4M3 without its scale. */
void st_decode(enum st_type type, const void *src, float *x, uint64_t n);

#endif
