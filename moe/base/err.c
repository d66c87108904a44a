/* See err.h. */
#include "moe/base/err.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void err_clear(struct err *e)
{
    if (!e) return;
    e->code = OK;
    e->pos = ERR_NO_POS;
    e->msg[0] = 0;
}

static enum status record(struct err *e, enum status code, uint64_t pos, const char *fmt,
                          va_list ap)
{
    if (e && e->code == OK) {
        e->code = code;
        e->pos = pos;
        (void)vsnprintf(e->msg, sizeof e->msg, fmt, ap);
    }
    return code;
}

enum status err_set(struct err *e, enum status code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)record(e, code, ERR_NO_POS, fmt, ap);
    va_end(ap);
    return code;
}

enum status err_set_at(struct err *e, enum status code, uint64_t pos, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    (void)record(e, code, pos, fmt, ap);
    va_end(ap);
    return code;
}

const char *err_name(enum status code)
{
    switch (code) {
    case OK: return "ok";
    case ERR_IO: return "input/output error";
    case ERR_FORMAT: return "malformed file";
    case ERR_UNSUPPORTED: return "not supported";
    case ERR_MISSING: return "missing";
    case ERR_SHAPE: return "wrong shape";
    case ERR_RANGE: return "out of range";
    case ERR_MEMORY: return "out of memory";
    case ERR_BUDGET: return "does not fit the budget";
    case ERR_FULL: return "context full";
    case ERR_CANCELLED: return "interrupted";
    case ERR_DEVICE: return "a device failed";
    case ERR_USAGE: return "usage";
    }
    return "unknown";
}

_Noreturn void err_assert_failed(const char *expr, const char *file, int line)
{
    (void)fprintf(stderr, "tessera: internal error: %s at %s:%d\n", expr, file, line);
    abort();
}
