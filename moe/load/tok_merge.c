/* The merge loop of both families, and the memory of words already seen in a call.
 *
 * Owns the scratch of struct enc; knows nothing about how text was cut into words.
 *
 * DESIGN
 *
 * Problem: a word is a row of symbols (bytes, or characters).  Again and again the best pair of
 * neighbours becomes one symbol: the merge of lowest rank (BPE, gemma4) or the token of highest
 * score (SentencePiece), the leftmost among equals, until no pair is a token.  Looking at every
 * pair each time is quadratic, and a "word" can be a megabyte.
 *
 * Idea: symbols are a linked list in an array; candidates lie in a binary heap, smallest order
 * first, then leftmost.  A merge keeps the left symbol's place, takes the right one out of the list
 * and finds at most two new candidates.  Candidates that are out of date stay in the heap and are
 * recognised when they come up.
 *
 * Invariant: a candidate {left, len} is current exactly when `left` is alive and it and its
 * neighbour together have len bytes.  A symbol only ever grows by swallowing its right neighbour,
 * so whatever happened to either of the two has made the sum longer or `left` dead.
 *
 * Cost: n-1 candidates at first (heapified in linear time) and at most two for each of at most n-1
 * merges that took one out: never more than 2n in the heap, O(n log n) in all.  No recursion. */
#include <stdlib.h>
#include <string.h>

#include "moe/load/tok_int.h"

static bool before(const struct cand *a, const struct cand *b)
{
    return a->order != b->order ? a->order < b->order : a->left < b->left;
}

static void sift_down(struct cand *heap, int32_t n, int32_t i)
{
    struct cand c = heap[i];
    for (;;) {
        int32_t kid = 2 * i + 1;
        if (kid >= n) break;
        if (kid + 1 < n && before(&heap[kid + 1], &heap[kid])) kid++;
        if (!before(&heap[kid], &c)) break;
        heap[i] = heap[kid];
        i = kid;
    }
    heap[i] = c;
}

static void sift_up(struct cand *heap, int32_t i)
{
    struct cand c = heap[i];
    while (i > 0 && before(&c, &heap[(i - 1) / 2])) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = c;
}

/* Fills *c when symbol i and its right neighbour can merge. */
static bool find_cand(const struct enc *e, const char *word, int32_t i, struct cand *c)
{
    const struct sym *a = &e->sym[i];
    if (a->next < 0) return false;
    const struct sym *b = &e->sym[a->next];
    if (e->t->spm && !e->t->ranked) {
        if (!spm_pair(e->t, word, a, b, c)) return false;
    } else {
        const struct pair *p = bpe_pair(e->t, a->id, b->id);
        if (!p) return false;
        c->order = p->rank;
        c->id = p->id;
    }
    c->left = i;
    c->len = a->len + b->len;
    return true;
}

static bool is_current(const struct sym *sym, const struct cand *c)
{
    const struct sym *a = &sym[c->left];
    return a->len && a->next >= 0 && a->len + sym[a->next].len == c->len;
}

static void join(struct sym *sym, const struct cand *c)
{
    struct sym *a = &sym[c->left];
    struct sym *b = &sym[a->next];
    a->len = c->len;
    a->id = c->id;
    a->next = b->next;
    if (b->next >= 0) sym[b->next].prev = c->left;
    b->len = 0;
}

void merge_run(struct enc *e, const char *word, int32_t n)
{
    struct cand *heap = e->heap;
    struct cand c;
    int32_t n_heap = 0;
    for (int32_t i = 0; i + 1 < n; i++)
        if (find_cand(e, word, i, &c)) heap[n_heap++] = c;
    for (int32_t i = n_heap / 2 - 1; i >= 0; i--) sift_down(heap, n_heap, i);
    while (n_heap) {
        struct cand best = heap[0];
        heap[0] = heap[--n_heap];
        if (n_heap) sift_down(heap, n_heap, 0);
        if (!is_current(e->sym, &best)) continue;
        join(e->sym, &best);
        int32_t touched[2] = {e->sym[best.left].prev, best.left};
        for (int k = 0; k < 2; k++) {
            if (touched[k] < 0 || !find_cand(e, word, touched[k], &c)) continue;
            heap[n_heap] = c;
            sift_up(heap, n_heap++);
        }
    }
}

bool merge_room(struct enc *e, size_t n)
{
    if (n <= (size_t)e->cap_sym) return true;
    size_t want = n > SIZE_MAX / 4 ? n : n + n / 4;
    struct sym *sym = malloc(want * sizeof *sym);
    struct cand *heap = malloc(2 * want * sizeof *heap);
    if (!sym || !heap || want > INT32_MAX) {
        free(sym);
        free(heap);
        e->oom = true;
        return false;
    }
    if (e->sym != e->small_sym) free(e->sym);
    if (e->heap != e->small_heap) free(e->heap);
    e->sym = sym;
    e->heap = heap;
    e->cap_sym = (int32_t)want;
    return true;
}

/* ---- words ------------------------------------------------------------------------------------
 * Text repeats its words; a small direct-mapped table of those seen in this call saves most of the
 * merging.  It belongs to the call, so that threads share nothing. */

static struct word *word_slot(const struct enc *e, const char *s, size_t n)
{
    if (!e->words || n > WORD_KEY || !n) return NULL;
    return &e->words[tok_hash(s, n) >> 32 & (WORD_SLOTS - 1)];
}

bool word_known(struct enc *e, const char *s, size_t n)
{
    e->n_last = 0;
    const struct word *w = word_slot(e, s, n);
    if (!w || w->len != n || memcmp(w->key, s, n) != 0) return false;
    for (int i = 0; i < w->n_ids; i++) enc_put(e, w->id[i]);
    return true;
}

void word_learn(struct enc *e, const char *s, size_t n)
{
    struct word *w = word_slot(e, s, n);
    if (!w || e->n_last > WORD_IDS || e->oom) return;
    w->len = (uint8_t)n;
    w->n_ids = (uint8_t)e->n_last;
    memcpy(w->key, s, n);
    memcpy(w->id, e->last, (size_t)e->n_last * sizeof *w->id);
}
