/* Observations of past steps: an append-only ring of what the router chose, the input of
 * predictors, residency policies and traces.  Fixed records, allocated once; the newest overwrite
 * the oldest, so whoever needs them all looks on (tessera_observe).  Executor thread only. */
#ifndef MOE_RUN_OBS_H
#define MOE_RUN_OBS_H

#include <stdint.h>

#include "moe/base/err.h"

struct obs {
    uint64_t step;       /* number of the forward pass */
    int32_t layer;
    int32_t session;     /* serial number of the session */
    int32_t pos, token;
    int32_t n_used;      /* obs_open's at most */
    const int32_t *expert; /* [n_used] in router-slot order; borrowed, as all arrays are */
    const float *weight;   /* [n_used] */
    const uint8_t *in_ram; /* [n_used] whether it was in memory when the router named it */
    uint32_t wait_us;      /* microseconds for which the layer had nothing to compute, the whole
                              step's rows together */
};

struct obs_ring {
    int32_t *word;       /* [cap][stride] */
    float *weight;       /* [cap][n_used] */
    uint8_t *in_ram;     /* [cap][n_used] */
    void (*sink)(void *arg, const struct obs *o); /* sees every record as it is put; or NULL */
    void *sink_arg;
    int stride, cap, n_used;
    uint64_t n_written;  /* records ever */
};

enum status obs_open(struct obs_ring *r, int n_used, struct err *e);
void obs_close(struct obs_ring *r);
void obs_put(struct obs_ring *r, const struct obs *o);
/* Record number i; those from n_written - cap (or 0) to n_written - 1 are there. */
int obs_get(const struct obs_ring *r, uint64_t i, struct obs *o);

#endif
