/* Shared by the tests that need the CUDA plugin: the one beside the test, on an emulated runtime
 * (tests/cuda_emu).  Owns nothing; never used by the library. */
#ifndef TESTS_PLUGIN_H
#define TESTS_PLUGIN_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#include "moe/compute/dev.h"

/* What its context is assumed to take where nothing can tell, and what rounding up may, in MiB. */
enum { CUDA_OWN = 640 + 34 };

/* The plugin of that folder behind cuda_emu: "", or "/old", which is of another build. */
static inline const struct dev_api *plugin(const char *folder)
{
    char path[512];
    struct err e;
    const ssize_t n = readlink("/proc/self/exe", path, sizeof path - 64);
    assert_true(n > 0);
    path[n] = 0;
    (void)snprintf(strrchr(path, '/'), 64, "/../cuda_emu%s", folder);
    (void)setenv("TESSERA_PLUGINS", path, 1);
    err_clear(&e);
    const struct dev_api *api = dev_plugin("cuda", &e);
    if (!api) fail_msg("%s", e.msg);
    return api;
}

#endif
