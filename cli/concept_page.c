/* See concept_page.h.  Knows pages and tokens; runs no model, reads no file. */
#include "cli/concept_page.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "moe/load/gguf.h"

enum { WORDS = 1500, SPANS = 8 };

enum status concept_text_add(struct concept_text *c, const tessera_engine *e, const tessera_session *s,
                             struct err *err)
{
    static const char key[] = "conceptmoe.concept.target_ratio";
    const float *chance = tessera_session_chances(s);
    const unsigned char *depth = tessera_session_depths(s);
    const int32_t *ids = tessera_session_ids(s);
    const int n = tessera_session_n(s);
    float aim = 0;
    if (!chance || !n) return OK;
    if (c->n + n > c->cap) {
        const int cap = c->n + n > 2 * c->cap ? c->n + n : 2 * c->cap;
        void *grown = realloc(c->at, sizeof *c->at * (size_t)cap);
        if (!grown) return err_set(err, ERR_MEMORY, "no memory for the text's concepts");
        c->at = grown;
        c->cap = cap;
    }
    for (int i = 0; i < n; i++)
        c->at[c->n++] = (struct concept_token){ids[i], depth[i] > 0, chance[i]};
    if (gguf_find(tessera_gguf(e), key) && !gguf_get_f32(tessera_gguf(e), key, &aim, NULL))
        c->aim = (double)aim;
    return OK;
}

void concept_text_free(struct concept_text *c)
{
    free(c->at);
    *c = (struct concept_text){.n = 0};
}

static void words(struct page *p, const struct concept_text *c, const struct tok *tok)
{
    page_words(p, true);
    for (int i = 0; i < c->n && i < WORDS; i++) {
        const struct concept_token *t = &c->at[i];
        char s[TOK_PIECE_MAX], tip[64];
        const int k = tok ? tok_piece(tok, t->id, true, s, sizeof s) : snprintf(s, sizeof s, "%d ", t->id);
        if (t->begins && i) page_word(p, "\xe2\x94\x82", 3, NAN, "");
        (void)snprintf(tip, sizeof tip, "token %d, chance %.3f", t->id, (double)t->chance);
        page_word(p, s, (size_t)k, (double)t->chance, tip);
    }
    page_words(p, false);
}

static void spans(struct page *p, const struct concept_text *c)
{
    int n[SPANS + 1] = {0}, length = 0, all = 0;
    char text[SPANS + 1][24], head[SPANS + 1][24];
    const char *cell[SPANS + 1], *title[SPANS + 1];
    for (int i = 0; i <= c->n; i++) {
        if (i == c->n || c->at[i].begins) {
            all += length > 0;
            n[length < SPANS ? length : SPANS] += length > 0;
            length = 0;
        }
        length++;
    }
    (void)snprintf(head[0], sizeof head[0], "tokens");
    (void)snprintf(text[0], sizeof text[0], "share of concepts");
    for (int i = 1; i <= SPANS; i++) {
        (void)snprintf(head[i], sizeof head[i], i < SPANS ? "%d" : "%d or more", i);
        (void)snprintf(text[i], sizeof text[i], "%.1f %%", all ? 100.0 * n[i] / all : 0);
    }
    for (int i = 0; i <= SPANS; i++) {
        cell[i] = text[i];
        title[i] = head[i];
    }
    page_table(p, true);
    page_row(p, true, SPANS + 1, title);
    page_row(p, false, SPANS + 1, cell);
    page_table(p, false);
}

void concept_page(struct page *p, const struct concept_text *c, const struct tok *tok)
{
    int n = 0;
    double sum = 0;
    char aim[40] = "";
    for (int i = 0; i < c->n; i++) {
        n += c->at[i].begins;
        sum += isnan(c->at[i].chance) ? 0 : (double)c->at[i].chance;
    }
    if (!n) return;
    if (c->aim > 0) (void)snprintf(aim, sizeof aim, " (%.2f were aimed at)", c->aim);
    page_head(p, "Concepts", "%d tokens in %d concepts: %.2f to each%s; mean chance of a boundary %.3f. A "
              "line stands before each token that sees a new concept: the tokens behind the last such "
              "token, up to this one. The warmer a token, the larger its chance.%s",
              c->n, n, (double)c->n / n, aim, sum / c->n,
              c->n > WORDS ? " Only the text's beginning." : "");
    words(p, c, tok);
    spans(p, c);
}
