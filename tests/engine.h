/* Shared by the tests that open engines: what must succeed does, or the test ends with the message.
 *
 *     tessera_engine *e = must_open(&options);
 *     tessera_session *s = session(e);
 *
 * Owns nothing; never used by the library. */
#ifndef TESTS_ENGINE_H
#define TESTS_ENGINE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "moe/tessera.h"

static inline tessera_engine *must_open(const struct tessera_options *o)
{
    struct err e;
    tessera_engine *engine;
    if (tessera_open(o, &engine, &e)) fail_msg("%s", e.msg);
    return engine;
}

/* With the engine's context. */
static inline tessera_session *session(tessera_engine *e)
{
    struct err err;
    tessera_session *s;
    if (tessera_session_open(e, 0, &s, &err)) fail_msg("%s", err.msg);
    return s;
}

/* The smallest budget that works, in bytes: the number that a refusal names. */
static inline uint64_t smallest(const struct tessera_options *like)
{
    struct tessera_options o = *like;
    struct err err;
    tessera_engine *e;
    o.mem_budget = 1 << 20;
    assert_int_equal(tessera_open(&o, &e, &err), ERR_BUDGET);
    assert_null(e);
    const char *at = strstr(err.msg, "--mem ");
    assert_non_null(at);
    return (uint64_t)(strtod(at + 6, NULL) * (1 << 20));
}

/* A test's own folder with all that is in it; not 0 when that fails. */
static inline int tests_remove(const char *dir)
{
    char cmd[128];
    (void)snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
    return system(cmd);
}

#endif
