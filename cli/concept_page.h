/* The part of a page that shows which tokens of a text share a concept; see concept_page.c. */
#ifndef CLI_CONCEPT_PAGE_H
#define CLI_CONCEPT_PAGE_H

#include "cli/page.h"
#include "moe/load/tok.h"
#include "moe/tessera.h"

/* Texts as sessions had them, one after another.  Zeros are an empty one; owned until free. */
struct concept_text {
    int n, cap;
    double aim;              /* tokens per concept that training aimed at; 0 = not known */
    struct concept_token {
        int32_t id;
        bool begins;         /* a concept is seen from here on that the token before did not see */
        float chance;
    } *at;
};

/* Adds all tokens of a timeline; nothing for a model without concepts.  ERR_MEMORY. */
enum status concept_text_add(struct concept_text *c, const tessera_engine *e, const tessera_session *s,
                             struct err *err);
void concept_text_free(struct concept_text *c);

/* tok NULL: tokens are numbers.  An empty text draws nothing. */
void concept_page(struct page *p, const struct concept_text *c, const struct tok *tok);

#endif
