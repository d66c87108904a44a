/* Which model is this?  A number that ties what was made with a model (sessions, traces, predictors,
 * forecasters) to its file.
 *
 * It covers names, shapes, types and places of all tensors, and 256 bytes from the middle of 32 of them:
 * two fine-tunes of one model differ, though their headers may not, and nobody has to read gigabytes to
 * know.  Changes to a few weights elsewhere are not seen.  Owns nothing; any thread. */
#ifndef MOE_LOAD_IDENTITY_H
#define MOE_LOAD_IDENTITY_H

#include "moe/load/gguf.h"

/* ERR_IO when the file cannot be read. */
enum status identity_of(const struct gguf *g, uint64_t *out, struct err *e);

#endif
