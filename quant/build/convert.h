/* A Hugging Face folder to a GGUF file: what `tessera convert` does.
 *
 * Offline tool code.  convert_open() reads the headers, config.json and the vocabulary, and decides
 * every tensor: which tensors of the checkpoint it is made of, how its rows lie in them, its type.
 * convert_write() streams: a few megabytes at a time, or one expert's matrix where it has to be
 * turned; never the whole model.  The file is written aside and renamed at the end.  A tensor of
 * the checkpoint that no table knows is an error.  One caller thread; encoding runs on the given
 * pool. */
#ifndef QUANT_BUILD_CONVERT_H
#define QUANT_BUILD_CONVERT_H

#include "models/hf.h"
#include "moe/base/thread.h"
#include "moe/load/hf_vocab.h"
#include "moe/load/safetensors.h"
#include "quant/qtype.h"

enum convert_type { CONVERT_AUTO, CONVERT_F32, CONVERT_F16, CONVERT_BF16, CONVERT_Q8_0 };

struct convert_options {
    const char *dir;
    enum convert_type type; /* of matrices; auto: the 16-bit kind that the checkpoint has */
    const char *pre;        /* tokenizer.ggml.pre, NULL = find it out */
    const char *name;       /* general.name, NULL = the folder's */
    const struct osfile_ops *ops; /* NULL = the system's */
};

struct convert_tensor {
    char name[64];
    const struct hf_row *row;
    uint32_t first_src, n_src; /* in convert.src: one, or one per expert; none: HF_ROPE_FREQS */
    const struct st_tensor *scales; /* of HF_MXFP4 and its kind */
    enum qtype type;
    int n_dims;
    uint64_t dim[GGUF_DIMS];      /* dim[0] = columns */
    uint64_t bytes;
    /* Value (row, col) of matrix mat is value
     *     off + mat * mat_step + row * row_step + col * col_step
     * of its source (mat 0 where each has its own); of HF_MXFP4: blocks of 32. */
    uint64_t n_mats, n_rows, n_cols, off, mat_step, row_step, col_step;
    uint64_t head_rows;           /* rows of a head whose halves become pairs; 0 = none */
};

struct convert {
    struct convert_options opt;
    char *path; /* of config.json, for messages */
    cJSON *config, *generation;
    struct hf_model model;
    struct hf_vocab *vocab;
    struct st *st;
    struct gguf_writer *w;
    struct convert_tensor *tensor; /* [n] in the order of the file */
    uint32_t n, cap;
    const struct st_tensor **src;  /* [n_src] sources of the tensors, one after the other */
    uint32_t n_src, cap_src;
    bool *used;                    /* [st_n] */
    enum convert_type type;        /* never auto */
    uint64_t bytes_in, bytes_out;
    uint64_t n_ignored, bytes_ignored; /* tensors of the checkpoint that are left out */
};

/* c needs no initialisation; convert_close in any case.  ERR_MISSING: a tensor or file that must be
 * there; ERR_UNSUPPORTED: an architecture, setting, tensor or tokenizer that is not known;
 * ERR_SHAPE: tensors that contradict config.json; ERR_FORMAT, ERR_IO, ERR_MEMORY. */
enum status convert_open(struct convert *c, const struct convert_options *o, struct err *e);
void convert_close(struct convert *c);

/* Writes the file, once; progress may be NULL and cancels by returning false. */
enum status convert_write(struct convert *c, const char *out, struct pool *pool,
                          bool (*progress)(void *arg, uint64_t done, uint64_t total), void *arg,
                          struct err *e);

#endif
