/* The registry of architectures: see arch.h. */
#include "models/arch.h"

#include <stdio.h>
#include <string.h>

/* One row per file. */
#define ARCH_LIST(X)                                                                               \
    X(llama)                                                                                       \
    X(bailingmoe2)                                                                                 \
    X(dots1)                                                                                       \
    X(ernie45moe)                                                                                  \
    X(gemma4)                                                                                      \
    X(granitemoe)                                                                                  \
    X(hunyuanmoe)                                                                                  \
    X(minimaxm2)                                                                                   \
    X(phimoe)                                                                                      \
    X(qwen2)                                                                                       \
    X(qwen3)                                                                                       \
    X(smallthinker)                                                                                \
    X(qwen2moe)                                                                                    \
    X(qwen3moe)                                                                                    \
    X(qwen3next)                                                                                   \
    X(qwen35moe)                                                                                   \
    X(lfm2moe)                                                                                     \
    X(olmoe)                                                                                       \
    X(deepseek2)                                                                                   \
    X(glm4moe)                                                                                     \
    X(gptoss)                                                                                      \
    X(conceptmoe)                                                                                  \
    X(hnet)                                                                                        \
    X(mor)                                                                                         \
    X(nanbeige)                                                                                    \
    X(ouro)                                                                                        \
    X(ecdlm)                                                                                       \
    X(dream)                                                                                       \
    X(llada)                                                                                       \
    X(lladamoe)                                                                                    \
    X(rnd1)

#define X(name) extern const struct arch arch_##name;
ARCH_LIST(X)
#undef X

static const struct arch *const registry[] = {
#define X(name) &arch_##name,
    ARCH_LIST(X)
#undef X
};
enum { N_ARCH = sizeof registry / sizeof *registry };

const struct arch *arch_at(int i) { return i >= 0 && i < N_ARCH ? registry[i] : NULL; }

enum status arch_find(const struct gguf *g, const struct arch **out, struct err *e)
{
    struct gguf_str name;
    *out = NULL;
    enum status s = gguf_get_str(g, "general.architecture", &name, e);
    if (s) return s;
    for (int i = 0; i < N_ARCH; i++) {
        if (gguf_str_is(name, registry[i]->name)) {
            *out = registry[i];
            return OK;
        }
    }
    char list[512] = "";
    for (int i = 0; i < N_ARCH; i++) {
        size_t n = strlen(list);
        (void)snprintf(list + n, sizeof list - n, "%s%s", i ? ", " : "", registry[i]->name);
    }
    return err_set(e, ERR_UNSUPPORTED, "%s: architecture \"%.*s\" is not known; known are: %s",
                   gguf_path(g, 0), (int)(name.n < 64 ? name.n : 64), name.s, list);
}
