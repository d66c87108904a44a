/* What this build can open, printed from the registries of the code itself: the README's table. */
#include <string.h>

#include "cli/cli.h"
#include "models/arch.h"
#include "models/hf.h"
#include "moe/load/chat.h"
#include "quant/mm.h"

int cli_print_support(void)
{
    printf("| what | known |\n|---|---|\n| architectures |");
    for (int i = 0; arch_at(i); i++)
        printf("%s `%s` (%s)", i ? "," : "", arch_at(i)->name, arch_at(i)->what);
    printf(" |\n| weight formats |");
    const struct mm_kernels *mm = mm_kernels(CPU_REF);
    for (int i = 0, n = 0; qtype_at(i); i++)
        if (mm->mm[qtype_at(i)->id]) printf("%s %s", n++ ? "," : "", qtype_at(i)->name);
    printf(" |\n| tokenizers | SentencePiece-style (`llama`, `gemma4`); byte-level BPE (`gpt2`) "
           "with the pre-tokenizers");
    for (int i = 0; tok_pre_at(i); i++) printf("%s `%s`", i ? "," : "", tok_pre_at(i));
    printf(" |\n| chat templates | the file's own (Jinja), or any file; built in:");
    for (int i = 0; chat_builtin_at(i); i++) printf("%s `%s`", i ? "," : "", chat_builtin_at(i));
    printf(" |\n| containers | GGUF version 2 and 3, split files |\n"
           "| KV cache | f16, q8_0 |\n");
    printf("| checkpoints (`tessera convert`) | Hugging Face safetensors of");
    for (int i = 0; hf_arch_at(i); i++)
        for (const char *p = hf_arch_at(i)->classes; *p; p += *p == ' ') {
            const size_t n = strcspn(p, " ");
            printf("%s `%.*s`", i || p != hf_arch_at(i)->classes ? "," : "", (int)n, p);
            p += n;
        }
    printf(" |\n");
    return CLI_OK;
}
