/* The page of `tessera trace --html`: pictures of one trace, or of two side by side. */
#ifndef CLI_TRACE_PAGE_H
#define CLI_TRACE_PAGE_H

#include "cli/concept_page.h"
#include "moe/base/machine.h"
#include "moe/load/tok.h"
#include "moe/load/trace.h"

struct trace_page {
    const struct trace *t[2];   /* the second NULL: one trace */
    const char *name[2];        /* of their files */
    const struct tok *tok;      /* what tokens mean; NULL: not known */
    const struct concept_text *concepts; /* of the first trace; NULL: not known */
    const struct machine *machine; /* speeds for tokens per second; NULL: not known */
};

/* ERR_IO, ERR_MEMORY; ERR_SHAPE for two traces of models of different shapes. */
enum status trace_page_write(const struct trace_page *p, const char *path, struct err *e);

#endif
