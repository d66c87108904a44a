/* A learned routing-path predictor as a file: a GGUF container (general.type "tessera.predictor")
 * beside the model that it was fitted to (routing/fit/), tied to it by the model's hash.
 *
 * Keys tessera.model.{hash,name}, tessera.predictor.{n_used,n_layers,n_experts}; F32 tensors as in
 * routing/predict.h: embed, taps, slow_taps, hidden, hidden_bias, out, out_bias, and frequency
 * [n_layers * n_experts], the share of tokens that used an expert.  Owns the arrays. */
#ifndef MOE_RUN_PREDICTOR_H
#define MOE_RUN_PREDICTOR_H

#include "moe/base/err.h"
#include "moe/base/osfile.h"
#include "routing/predict.h"

struct predictor {
    struct path_model path; /* points into data */
    const float *frequency; /* [n_layers * n_expert] */
    uint64_t model_hash;
    float *data;
};

/* ERR_IO, ERR_FORMAT, ERR_MISSING, ERR_SHAPE, ERR_MEMORY; *out is all zero then. */
enum status predictor_read(const char *path, const struct osfile_ops *ops, struct predictor *out,
                           struct err *e);
enum status predictor_write(const struct predictor *p, const char *model_name, const char *path,
                            struct err *e);
void predictor_free(struct predictor *p);

/* Floats of all arrays of a shape; predictor_place points p's arrays into data of that many. */
uint64_t predictor_floats(const struct path_model *shape);
void predictor_place(struct predictor *p, float *data);

#endif
