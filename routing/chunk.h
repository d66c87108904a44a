/* The concept chunker: where a row begins anew, and what goes between the two rates of a model whose
 * middle sees concepts instead of tokens (ConceptMoE, arXiv 2601.21420; H-Net, arXiv 2507.07955).
 *
 * Pure functions on the caller's arrays: no I/O, no threads, no allocation.  f32, in the order written
 * here and the same in every tier; one row's result does not depend on others'. */
#ifndef ROUTING_CHUNK_H
#define ROUTING_CHUNK_H

/* The chance that a row begins anew: (1 - cosine) / 2 of two vectors of length 1, within 0 .. 1.  The
 * dot product in the sixteen-lane order of elem.h, without fused multiply-add. */
float chunk_chance(int n, const float *mine, const float *before);

/* y = p c + (1 - p) y, p being within margin .. 1 - margin. */
void chunk_smooth(int n, float p, float margin, const float *c, float *y);

#endif
