// stats.h: the little statistics the evidence needs. All randomness comes from a seed; all sums are in double.
#ifndef STATS_H
#define STATS_H

#include "base.h"

typedef struct {
    uint64_t state;
} Rng;
Rng rng_seed(uint64_t seed, uint64_t stream); // streams of one seed are independent
uint64_t rng_next(Rng *r);                    // splitmix64
int rng_below(Rng *r, int n);                 // 0 .. n - 1
double rng_normal(Rng *r);
void rng_shuffle(Rng *r, int *v, int n);

double mean_of(const double *x, int n);
double quantile_of(const double *x, int n, double q); // linear between order statistics; NaN when n is 0

typedef struct {
    double low, high;
} Interval;
// 95 % interval of a rate of k in n (Wilson 1927).
Interval wilson(int k, int n);
// 95 % percentile interval of the mean, from 2000 resamples (Efron 1979).
Interval bootstrap(const double *x, int n, uint64_t seed);

// Are the values of a larger than those of b? auc: share of pairs in which they are, ties half; p: one-sided, by the normal
// approximation with ties and continuity (Mann and Whitney 1947).
typedef struct {
    double auc, p;
} Larger;
Larger larger(const double *a, int n_a, const double *b, int n_b);

// Over the n logits of a row.
double log_sum_exp(const float *z, int n);
double kl_divergence(const float *base, const float *other, int n); // KL(base || other) in nats; exactly 0 for equal rows
int arg_max(const float *z, int n);

#endif
