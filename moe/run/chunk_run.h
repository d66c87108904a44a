/* Boundaries of concepts, and what goes between the two rates; see chunk_run.c. */
#ifndef MOE_RUN_CHUNK_RUN_H
#define MOE_RUN_CHUNK_RUN_H

#include "moe/run/engine_int.h"

/* A DEPTH op with DEPTH_BOUNDARY: fills its output and e->pass. */
void chunk_boundaries(struct tessera_engine *e, const struct op *op);
/* SPAN and SMOOTH. */
void chunk_run(struct tessera_engine *e, const struct op *op);

#endif
