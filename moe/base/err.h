/* Errors: one status enum and one error record for the whole tree.
 *
 * A function that can fail returns `enum status`; on the load, open and plan paths it also takes a
 * `struct err *` (may be NULL) where the FIRST failure wins.  The message says what happened, where
 * (file, tensor, byte) and what to do.  Nothing here prints, exits or allocates.  Any thread. */
#ifndef MOE_BASE_ERR_H
#define MOE_BASE_ERR_H

#include <stdint.h>

enum status {
    OK = 0,
    ERR_IO,          /* the system refused: open, read, write, full disk */
    ERR_FORMAT,      /* the file is malformed; err.pos is the byte */
    ERR_UNSUPPORTED, /* well-formed, but not something Tessera knows */
    ERR_MISSING,     /* a tensor or key that must be there is not */
    ERR_SHAPE,       /* a tensor or array has the wrong shape or type */
    ERR_RANGE,       /* an argument is outside what the model allows */
    ERR_MEMORY,      /* the system gave no memory */
    ERR_BUDGET,      /* does not fit the memory budget: exit code 3 */
    ERR_FULL,        /* the context is full */
    ERR_CANCELLED,   /* the caller asked to stop */
    ERR_DEVICE,      /* a device failed or cannot be used */
    ERR_USAGE,       /* wrong before any file was opened: exit code 2 */
};

struct err {
    enum status code;
    uint64_t pos; /* byte position in the file, UINT64_MAX when there is none */
    char msg[512];
};

#define ERR_NO_POS UINT64_MAX

/* Clears e so that a later failure can be recorded. */
void err_clear(struct err *e);

/* Records code and message unless e already holds a failure; returns code, so that
 * `return err_set(...)` reads well.  e may be NULL. */
enum status err_set(struct err *e, enum status code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* The same with a byte position. */
enum status err_set_at(struct err *e, enum status code, uint64_t pos, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

/* A short name such as "malformed file" for a code. */
const char *err_name(enum status code);

/* ASSERT stays on in release builds: it guards against programmer errors, never against input. */
_Noreturn void err_assert_failed(const char *expr, const char *file, int line);
#define ASSERT(x) ((x) ? (void)0 : err_assert_failed(#x, __FILE__, __LINE__))

#endif
