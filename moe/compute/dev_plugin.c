/* Devices that are plugins: finds a shared object and its entry.  Owns nothing: what was loaded stays
 * until the process ends, because drivers do not like to be unloaded.  It looks at nothing inside. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "moe/compute/dev.h"

/* The folder of the program, without the slash. */
static bool program_dir(char *dir, size_t n)
{
    const ssize_t got = readlink("/proc/self/exe", dir, n - 1);
    if (got <= 0 || (size_t)got >= n - 1) return false;
    dir[got] = 0;
    char *slash = strrchr(dir, '/');
    if (!slash) return false;
    *slash = 0;
    return true;
}

/* The folder that the user names; NULL = none. */
static const char *plugin_dir(void)
{
    const char *named = getenv("TESSERA_PLUGINS");
    return named && *named ? named : NULL;
}

static bool find(const char *name, char *path, size_t n)
{
    char dir[900];
    const char *named = plugin_dir();
    if (named) {
        (void)snprintf(path, n, "%s/tessera_%s.so", named, name);
        return !access(path, R_OK);
    }
    if (!program_dir(dir, sizeof dir)) return false;
    (void)snprintf(path, n, "%s/tessera_%s.so", dir, name);
    if (!access(path, R_OK)) return true;
    (void)snprintf(path, n, "%s/../lib/tessera/tessera_%s.so", dir, name);
    return !access(path, R_OK);
}

const struct dev_api *dev_plugin(const char *name, struct err *e)
{
    char path[1024];
    if (!find(name, path, sizeof path)) {
        const char *named = plugin_dir();
        (void)err_set(e, ERR_MISSING, "there is no plugin tessera_%s.so %s%s", name,
                      named ? "in " : "beside the program (`make cuda`)", named ? named : "");
        return NULL;
    }
    void *so = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!so) {
        const char *why = dlerror();
        (void)err_set(e, ERR_DEVICE, "its plugin does not load: %s", why ? why : path);
        return NULL;
    }
    const struct dev_api *(*entry)(void);
    void *at = dlsym(so, DEV_PLUGIN_ENTRY);
    memcpy(&entry, &at, sizeof entry); /* ISO C has no such conversion, POSIX has */
    const struct dev_api *api = at ? entry() : NULL;
    if (!api) (void)err_set(e, ERR_DEVICE, "%s is no plugin of Tessera", path);
    return api;
}
