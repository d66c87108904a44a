/* tessera tokenize: text to token ids.  Reads the header of the model only. */
#include <stdlib.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/escape.h"
#include "moe/load/tok.h"

struct tokenize_args {
    bool special, no_bos, pieces;
};

/* "  1234 -> ' text'", one line per token. */
static void print_pieces(const struct tok *t, const int32_t *ids, int n)
{
    for (int i = 0; i < n; i++) {
        char buf[512];
        int len = tok_piece(t, ids[i], true, buf, (int)sizeof buf);
        if (len > (int)sizeof buf) len = (int)sizeof buf;
        printf("%6d -> '", (int)ids[i]);
        (void)escape_print(stdout, buf, (size_t)len, 0);
        printf("'\n");
    }
}

static void print_ids(const int32_t *ids, int n)
{
    for (int i = 0; i < n; i++) printf(i ? ",%d" : "%d", (int)ids[i]);
    printf("\n");
}

static enum status tokenize(const struct cli_args *a, struct tokenize_args own, struct err *err)
{
    struct gguf *g = NULL;
    struct tok *t = NULL;
    char *text = NULL;
    int32_t *ids = NULL;
    size_t n_text = 0;
    int n = 0;
    unsigned flags = (own.no_bos ? 0 : TOK_BOS) | (own.special ? TOK_SPECIAL : 0);
    enum status s = gguf_open(a->model, NULL, &g, err);
    if (!s) s = tok_open(g, &t, err);
    if (!s) s = cli_read_prompt(a, &text, &n_text, err);
    if (!s) s = cli_encode(t, text, n_text, flags, &ids, &n, err);
    if (!s && own.pieces) print_pieces(t, ids, n);
    if (!s && !own.pieces) print_ids(ids, n);
    free(ids);
    free(text);
    if (t) tok_close(t);
    if (g) gguf_close(g);
    return s;
}

int cmd_tokenize(int argc, char **argv)
{
    struct tokenize_args own = {0};
    static const struct cli_flag flags[] = {
        {"--special --parse-special", NULL, "read <|im_end|> and the like as special tokens",
         CLI_TRUE, offsetof(struct tokenize_args, special), 0, 0},
        {"--no-bos", NULL, "no beginning-of-text token even where the vocabulary wants one",
         CLI_TRUE, offsetof(struct tokenize_args, no_bos), 0, 0},
        {"--pieces", NULL, "one token per line with its text", CLI_TRUE,
         offsetof(struct tokenize_args, pieces), 0, 0},
        {0}};
    struct cli_args a = cli_defaults();
    a.raw_text = true;
    struct cli_spec spec = {.name = "tokenize", .groups = CLI_MODEL | CLI_PROMPT,
                            .own = flags, .own_base = &own};
    int rc = cli_parse(&spec, argc, argv, &a);
    if (rc != CLI_GO_ON) return rc;
    if (!a.prompt == !a.file) return cli_usage("tokenize", "give the text with -p or with -f");
    struct err err;
    err_clear(&err);
    return tokenize(&a, own, &err) ? cli_fail(&err) : CLI_OK;
}
