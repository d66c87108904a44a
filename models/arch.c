/* The registry of architectures: see arch.h. */
#include "models/arch.h"

#include <stdio.h>
#include <string.h>

extern const struct arch arch_llama, arch_qwen3moe, arch_olmoe;

static const struct arch *const registry[] = {&arch_llama, &arch_qwen3moe, &arch_olmoe};
enum { N_ARCH = sizeof registry / sizeof *registry };

const struct arch *arch_at(int i) { return i >= 0 && i < N_ARCH ? registry[i] : NULL; }

enum status arch_find(const struct gguf *g, const struct arch **out, struct err *e)
{
    struct gguf_str name;
    *out = NULL;
    enum status s = gguf_get_str(g, "general.architecture", &name, e);
    if (s) return s;
    for (int i = 0; i < N_ARCH; i++) {
        const char *known = registry[i]->name;
        if (strlen(known) == name.n && !memcmp(known, name.s, name.n)) {
            *out = registry[i];
            return OK;
        }
    }
    char list[256] = "";
    for (int i = 0; i < N_ARCH; i++) {
        size_t n = strlen(list);
        (void)snprintf(list + n, sizeof list - n, "%s%s", i ? ", " : "", registry[i]->name);
    }
    return err_set(e, ERR_UNSUPPORTED, "%s: architecture \"%.*s\" is not known; known are: %s",
                   gguf_path(g, 0), (int)(name.n < 64 ? name.n : 64), name.s, list);
}
