// stats.c: see stats.h
#include "stats.h"

#include <math.h>
#include <stdlib.h>

uint64_t rng_next(Rng *r) { // Steele et al. 2014
    uint64_t z = r->state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

Rng rng_seed(uint64_t seed, uint64_t stream) {
    Rng r = {seed * 0xD1342543DE82EF95u + stream * 0x2545F4914F6CDD1Du + 1};
    (void)rng_next(&r);
    return r;
}

int rng_below(Rng *r, int n) { return (int)((rng_next(r) >> 32) * (uint64_t)n >> 32); }

double rng_normal(Rng *r) { // Box and Muller 1958
    const double u = ((double)(rng_next(r) >> 11) + 1) * 0x1p-53, v = (double)(rng_next(r) >> 11) * 0x1p-53;
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

void rng_shuffle(Rng *r, int *v, int n) {
    for (int i = n - 1; i > 0; i--) {
        const int j = rng_below(r, i + 1), t = v[i];
        v[i] = v[j];
        v[j] = t;
    }
}

double mean_of(const double *x, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    return n ? sum / n : NAN;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile_sorted(const double *x, int n, double q) {
    const double at = q * (n - 1);
    const int i = (int)at;
    return i + 1 < n ? x[i] + (at - i) * (x[i + 1] - x[i]) : x[n - 1];
}

double quantile_of(const double *x, int n, double q) {
    double *sorted = n ? malloc(sizeof *sorted * (size_t)n) : NULL;
    if (!sorted) return NAN;
    memcpy(sorted, x, sizeof *sorted * (size_t)n);
    qsort(sorted, (size_t)n, sizeof *sorted, by_value);
    const double value = quantile_sorted(sorted, n, q);
    free(sorted);
    return value;
}

Interval wilson(int k, int n) {
    if (!n) return (Interval){0, 1};
    const double z = 1.959963984540054, p = (double)k / n, centre = p + z * z / (2 * n), scale = 1 + z * z / n;
    const double half = z * sqrt(p * (1 - p) / n + z * z / (4.0 * n * n));
    return (Interval){k == 0 ? 0 : (centre - half) / scale, k == n ? 1 : (centre + half) / scale};
}

Interval bootstrap(const double *x, int n, uint64_t seed) {
    enum { N_SAMPLE = 2000 };
    double mean[N_SAMPLE];
    if (!n) return (Interval){NAN, NAN};
    Rng r = rng_seed(seed, 0xB007);
    for (int s = 0; s < N_SAMPLE; s++) {
        double sum = 0;
        for (int i = 0; i < n; i++) sum += x[rng_below(&r, n)];
        mean[s] = sum / n;
    }
    qsort(mean, N_SAMPLE, sizeof *mean, by_value);
    return (Interval){quantile_sorted(mean, N_SAMPLE, 0.025), quantile_sorted(mean, N_SAMPLE, 0.975)};
}

Larger larger(const double *a, int n_a, const double *b, int n_b) {
    if (!n_a || !n_b) return (Larger){NAN, 1};
    double u = 0, ties = 0; // U of a; sum of t^3 - t over groups of equal values
    for (int i = 0; i < n_a; i++)
        for (int j = 0; j < n_b; j++) u += a[i] > b[j] ? 1 : a[i] == b[j] ? 0.5 : 0;
    const int n = n_a + n_b;
    double *all = malloc(sizeof *all * (size_t)n);
    if (!all) return (Larger){NAN, 1};
    memcpy(all, a, sizeof *all * (size_t)n_a);
    memcpy(all + n_a, b, sizeof *all * (size_t)n_b);
    qsort(all, (size_t)n, sizeof *all, by_value);
    for (int i = 0, j; i < n; i = j) {
        for (j = i + 1; j < n && all[j] == all[i];) j++;
        const double t = j - i;
        ties += t * t * t - t;
    }
    free(all);
    const double pairs = (double)n_a * n_b, variance = pairs / 12 * (n + 1 - ties / ((double)n * (n - 1)));
    const double z = variance > 0 ? (u - pairs / 2 - 0.5) / sqrt(variance) : 0;
    return (Larger){u / pairs, variance > 0 ? 0.5 * erfc(z / sqrt(2)) : 1};
}

double log_sum_exp(const float *z, int n) {
    double highest = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) highest = fmax(highest, z[i]);
    for (int i = 0; i < n; i++) sum += exp(z[i] - highest);
    return highest + log(sum);
}

double kl_divergence(const float *base, const float *other, int n) {
    const double zb = log_sum_exp(base, n), zo = log_sum_exp(other, n);
    double kl = 0;
    for (int i = 0; i < n; i++) {
        const double lb = base[i] - zb, lo = other[i] - zo;
        if (isfinite(lb) && isfinite(lo)) kl += exp(lb) * (lb - lo); // a token ruled out has no share
        else if (isnan(lb) || isnan(lo)) return NAN;
    }
    return kl;
}

int arg_max(const float *z, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (z[i] > z[best]) best = i;
    return best;
}
