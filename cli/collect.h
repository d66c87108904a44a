/* Squared activations that the columns of a model's matrices meet, collected while it runs: what
 * `imatrix` writes and `stack` uses. */
#ifndef CLI_COLLECT_H
#define CLI_COLLECT_H

#include "cli/cli.h"
#include "quant/build/imatrix.h"

struct collector {
    struct imatrix m;
    bool output;    /* output.weight as well as the layers' */
    struct err err; /* the first thing that went wrong while collecting */
};

/* A tessera_watch_fn for tessera_watch(); arg is the struct collector. */
void collect(void *arg, const struct tessera_watched *w);

#endif
