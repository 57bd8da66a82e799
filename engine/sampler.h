// sampler.h: logits to one token id. Never modifies the logits. Same seed, same logits: same ids.
#ifndef SAMPLER_H
#define SAMPLER_H

#include "backend.h"
#include "gguf.h"

typedef struct {
    float temp;           // 0 = greedy
    int top_k;            // 0 = off
    float top_p;          // 1 = off
    float min_p;          // 0 = off
    float repeat_penalty; // 1 = off (CTRL, arXiv 1909.05858, section 4.1)
    int repeat_last_n;    // how many of the last ids the penalty looks at
    uint64_t seed;
} SamplerParams;

typedef struct {
    SamplerParams p;
    uint64_t rng;       // xorshift state
    int n_vocab;
    int *recent;        // [repeat_last_n] ring of accepted ids
    int n_recent, next_recent;
    struct Candidate *cand; // [n_vocab]
    bool (*banned)(const void *ctx, int id); // never emit these; NULL = none
    const void *banned_ctx;
} Sampler;

SamplerParams sampler_defaults(void); // temp 0.8, top_k 40, top_p 0.95, min_p 0.05, no penalty
// Overrides from the file's general.sampling.*, where present.
MUST_CHECK bool sampler_defaults_from_file(SamplerParams *p, const Gguf *g, Err *e);
MUST_CHECK bool sampler_open(Sampler *s, const SamplerParams *p, int n_vocab, Err *e);
void sampler_close(Sampler *s);
void sampler_accept(Sampler *s, int id); // tell it about every id of the text, prompt included
void sampler_forget(Sampler *s); // the ids it was told about
int sampler_next(Sampler *s, const float *logits);
// The same id from the sampler_wants_top() likeliest of those that are not banned, in descending order (TopArgs). 0: it takes all logits.
int sampler_wants_top(const Sampler *s);
int sampler_next_top(Sampler *s, const Likely *top, int n);

#endif
