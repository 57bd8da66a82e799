// sampler.c: from logits to one id, in llama.cpp's order: repeat penalty, top-k, top-p, min-p, temperature, draw. Each step
// shortens a list of candidates. Greedy (temp 0) is the likeliest after the penalty. Ties go to the lower id.
// A logit that is NaN or -infinity is never chosen; +infinity counts as very large. -1: nothing can be chosen.
#include "sampler.h"
#include <float.h>
#include <math.h>
#include <stdlib.h>

typedef struct Candidate {
    int id;
    float logit; // after the penalty
    float p;     // relative to the likeliest, which has 1
} Candidate;

SamplerParams sampler_defaults(void) {
    return (SamplerParams){.temp = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1, .repeat_last_n = 64};
}

static bool get_float(const Gguf *g, const char *key, double min, double max, float *out, Err *e) {
    float v = *out;
    if (!gguf_get_float(g, key, &v, e)) return false;
    if (gguf_key(g, key) && !(v >= min && v <= max)) return err_set(e, "%s: %g, expected %g to %g", key, (double)v, min, max);
    *out = v;
    return true;
}

static bool get_count(const Gguf *g, const char *key, int *out, Err *e) {
    int64_t v = *out;
    if (!gguf_get_int(g, key, -1, 1 << 30, &v, e)) return false;
    *out = (int)v;
    return true;
}

bool sampler_defaults_from_file(SamplerParams *p, const Gguf *g, Err *e) {
    SamplerParams f = *p;
    if (!get_float(g, "general.sampling.temp", 0, 1000, &f.temp, e) || !get_count(g, "general.sampling.top_k", &f.top_k, e) ||
        !get_float(g, "general.sampling.top_p", 0, 1, &f.top_p, e) || !get_float(g, "general.sampling.min_p", 0, 1, &f.min_p, e) ||
        !get_float(g, "general.sampling.penalty_repeat", 0.001, 1000, &f.repeat_penalty, e) ||
        !get_count(g, "general.sampling.penalty_last_n", &f.repeat_last_n, e))
        return false;
    f.top_k = max_int(f.top_k, 0); // -1, too, says: all
    *p = f;
    return true;
}

// A repeat_last_n of -1 (all there is, in llama.cpp) or of more than this looks at this many ids.
enum { MAX_RECENT = 1 << 20 };

bool sampler_open(Sampler *s, const SamplerParams *p, int n_vocab, Err *e) {
    *s = (Sampler){.p = *p, .n_vocab = n_vocab, .rng = p->seed};
    if (n_vocab < 1) return err_set(e, "the sampler: a vocabulary of %d tokens, expected at least 1", n_vocab);
    if (s->p.repeat_last_n < 0 || s->p.repeat_last_n > MAX_RECENT) s->p.repeat_last_n = MAX_RECENT;
    s->cand = malloc(sizeof *s->cand * (size_t)n_vocab);
    s->recent = malloc(sizeof *s->recent * (size_t)max_int(s->p.repeat_last_n, 1));
    if (s->cand && s->recent) return true;
    sampler_close(s);
    return err_set(e, "no memory for the sampler of %d tokens", n_vocab);
}

void sampler_close(Sampler *s) {
    free(s->cand);
    free(s->recent);
    *s = (Sampler){0};
}

void sampler_accept(Sampler *s, int id) {
    if (!s->p.repeat_last_n || id < 0 || id >= s->n_vocab) return;
    s->recent[s->next_recent] = id;
    s->next_recent = (s->next_recent + 1) % s->p.repeat_last_n;
    s->n_recent = min_int(s->n_recent + 1, s->p.repeat_last_n);
}

// splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014): any seed is as good as another.
static uint64_t random_bits(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

// ---- the list ----

static bool likelier(const Candidate *a, const Candidate *b) { return a->logit > b->logit || (a->logit == b->logit && a->id < b->id); }

static int by_likelihood(const void *a, const void *b) { return likelier(a, b) ? -1 : likelier(b, a); }

// The CTRL paper divides a recent id's logit; where it is negative that would reward, so it is multiplied (as everyone does).
// Once per id, however often it occurred.
static void penalise(Sampler *s) { // cand[id], p all 0
    if (s->p.repeat_penalty == 1) return;
    for (int i = 0; i < s->n_recent; i++) {
        Candidate *c = &s->cand[s->recent[i]];
        if (c->p != 0) continue;
        c->p = 1; // done
        if (c->logit == -INFINITY) continue;
        const float logit = c->logit > 0 ? c->logit / s->p.repeat_penalty : c->logit * s->p.repeat_penalty;
        c->logit = fmaxf(-FLT_MAX, fminf(FLT_MAX, logit));
    }
}

static void sink(Candidate *heap, int n, int i) { // the least likely on top
    for (;;) {
        int least = i;
        for (int child = 2 * i + 1; child <= 2 * i + 2 && child < n; child++)
            if (likelier(&heap[least], &heap[child])) least = child;
        if (least == i) return;
        const Candidate c = heap[i];
        heap[i] = heap[least];
        heap[least] = c;
        i = least;
    }
}

// Moves the k likeliest of all ids to the front of the list; returns how many there are. One pass with a heap of k, which
// asks about bans only where the answer matters.
static int take_top(Sampler *s, int k) {
    Candidate *cand = s->cand;
    int n = 0;
    for (int id = 0; id < s->n_vocab; id++) {
        const Candidate c = cand[id];
        if (c.logit == -INFINITY || (n == k && !likelier(&c, &cand[0])) || (s->banned && s->banned(s->banned_ctx, id))) continue;
        if (n == k) {
            cand[0] = c;
            sink(cand, k, 0);
            continue;
        }
        cand[n++] = c;
        if (n == k && k < s->n_vocab)
            for (int i = k / 2 - 1; i >= 0; i--) sink(cand, k, i);
    }
    return n;
}

// p = exp((logit - highest) / temp); returns the sum.
static double weigh(Candidate *cand, int n, float temp) {
    float highest = -FLT_MAX;
    for (int i = 0; i < n; i++) highest = fmaxf(highest, cand[i].logit);
    double sum = 0;
    for (int i = 0; i < n; i++) {
        cand[i].p = (float)exp(((double)cand[i].logit - (double)highest) / (double)temp);
        sum += (double)cand[i].p;
    }
    return sum;
}

// Both cuts keep the likeliest, so the shorter list of the two is what either order gives.
// top-p (Holtzman et al., arXiv 1904.09751): the fewest that together reach top_p of the sum. What has less than
// (1 - top_p) / n of it cannot be among them: all such together are less than what may be missing. Few remain to be sorted.
// min-p (Nguyen et al., arXiv 2407.01082): those with at least min_p times the highest probability.
static int cut(Candidate *cand, int n, float top_p, float min_p) {
    const double sum = weigh(cand, n, 1);
    const double floor_p = top_p < 1 ? (1 - (double)top_p) * sum / n : 0;
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (cand[i].p == 1 || (cand[i].p >= min_p && (double)cand[i].p >= floor_p)) cand[kept++] = cand[i];
    if (top_p >= 1) return kept;
    qsort(cand, (size_t)kept, sizeof *cand, by_likelihood);
    double reached = 0;
    int first = 0;
    while (first < kept && (first == 0 || reached < (double)top_p * sum)) reached += (double)cand[first++].p;
    return first;
}

void sampler_forget(Sampler *s) { s->n_recent = s->next_recent = 0; }

static bool greedy(const Sampler *s) { return !(s->p.temp > 0); }

// How many of the likeliest to choose from.
static int width(const Sampler *s) { return greedy(s) ? 1 : s->p.top_k > 0 && s->p.top_k < s->n_vocab ? s->p.top_k : s->n_vocab; }

// One of the n likeliest; they are in descending order if there are at most MAX_TOP.
static int choose(Sampler *s, int n) {
    const SamplerParams *p = &s->p;
    if (n == 0) return -1;
    if (greedy(s)) return s->cand[0].id;
    if (p->top_p < 1 || p->min_p > 0) n = cut(s->cand, n, p->top_p, p->min_p);
    const double sum = weigh(s->cand, n, p->temp);
    double left = (double)(random_bits(&s->rng) >> 11) * 0x1p-53 * sum; // uniform in [0, sum)
    int i = 0;
    while (i + 1 < n && left >= (double)s->cand[i].p) left -= (double)s->cand[i++].p;
    while (s->cand[i].p == 0) i--; // rounding went past the last one
    return s->cand[i].id;
}

int sampler_next(Sampler *s, const float *logits) {
    for (int id = 0; id < s->n_vocab; id++)
        s->cand[id] = (Candidate){id, isnan(logits[id]) ? -INFINITY : fminf(logits[id], FLT_MAX), 0};
    penalise(s);
    const int n = take_top(s, width(s));
    if (n <= MAX_TOP) qsort(s->cand, (size_t)n, sizeof *s->cand, by_likelihood); // as sampler_next_top has them: sums round the same way
    return choose(s, n);
}

int sampler_wants_top(const Sampler *s) {
    const int k = width(s);
    return s->p.repeat_penalty == 1 && k <= MAX_TOP ? k : 0;
}

int sampler_next_top(Sampler *s, const Likely *top, int n) {
    int kept = 0;
    while (kept < n && top[kept].logit > -INFINITY) kept++;
    for (int i = 0; i < kept; i++) s->cand[i] = (Candidate){top[i].id, top[i].logit, 0};
    return choose(s, kept);
}
