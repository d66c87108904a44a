/* Traces for other programs, written row by row: memory does not grow with the trace.
 *
 * One record per token and layer, in that order, in three forms:
 *
 *   CSV         a line of names, then a line per record      pandas.read_csv(F)
 *   JSON lines  an object per line; lists instead of columns that are numbered
 *                                                            pandas.read_json(F, lines=True)
 *   NPY         a structured array with the CSV's names      pandas.DataFrame(numpy.load(F))
 *
 *   step        forward pass, from 0                                              i4
 *   session     timeline, from 0                                                  i4
 *   position    of the token on it                                                i4
 *   token       its id, -1 = not known                                            i4
 *   layer       as numbered in the model                                          i4
 *   expert_K    (experts) chosen in router slot K, -1 = not routed                i4
 *   weight_K    (weights) of that expert's output                                 f4, if recorded
 *   tier_K      (tiers) where it was: 0 disk, 1 memory, 2 device                  u1, if recorded
 *   wait_us     microseconds for which the layer waited                           u4, if recorded
 *   norm        length of the hidden state that the router's norm reads           f4, if recorded
 *   loss        minus the log of the token's probability; -1 = not known          f4, if recorded
 *
 * Floats have as many digits as give the same float back.  Weights of a trace file are F16, those of a
 * run F32.  The file is written aside and renamed. */
#ifndef MOE_LOAD_TRACE_EXPORT_H
#define MOE_LOAD_TRACE_EXPORT_H

#include "moe/load/trace.h"

enum trace_form { TRACE_CSV, TRACE_JSONL, TRACE_NPY, TRACE_FORMS };

/* By the end of the name: .csv, .jsonl or .npy; TRACE_FORMS = none of these. */
enum trace_form trace_form_of(const char *path);

struct trace_export {
    struct osfile_writer file;
    enum trace_form form;
    int n_used;
    unsigned with; /* of enum: TRACE_WITH_* */
    uint64_t n;    /* records */
};

/* shape: a trace, perhaps without rows, with the fields that all rows will have.  ERR_IO. */
enum status trace_export_open(struct trace_export *x, const char *path, enum trace_form form,
                              const struct trace *shape, struct err *e);
/* All rows of t. */
enum status trace_export_rows(struct trace_export *x, const struct trace *t, struct err *e);
enum status trace_export_close(struct trace_export *x, struct err *e);
void trace_export_abort(struct trace_export *x);

/* An NPY file of n_rows x n_cols f32 that grows row by row: its head is written again at the end. */
struct npy {
    struct osfile_writer file;
    uint64_t n_rows;
    int n_cols; /* of the first rows; 0 = none yet */
};
enum status npy_open(struct npy *x, const char *path, struct err *e);
enum status npy_row(struct npy *x, const float *row, int n_cols, struct err *e);
enum status npy_close(struct npy *x, struct err *e);
void npy_abort(struct npy *x);

#endif
