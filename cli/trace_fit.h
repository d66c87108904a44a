/* `tessera trace --fit-forecasters`: see trace_fit.c. */
#ifndef CLI_TRACE_FIT_H
#define CLI_TRACE_FIT_H

#include "cli/cli.h"

/* Fits forecasters for e's feed-forwards on ids [n], but the last fifth, on which prices are measured;
 * bos: tokens that every window begins with.  Writes them to path and prints the prices. */
enum status trace_fit(tessera_engine *e, const int32_t *ids, int n, int bos, const char *path,
                      struct err *err);

#endif
