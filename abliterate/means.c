// means.c: see means.h. Difference of means: Arditi et al. 2024, "Refusal in language models is mediated by a single
// direction", section 2.3: no normalisation of the activations, no centring.
#include "means.h"

#include <math.h>
#include <stdlib.h>

bool means_init(Means *a, int n_pos, int n_layer, int n_embd, Err *e) {
    *a = (Means){.n_pos = n_pos, .n_layer = n_layer, .n_embd = n_embd};
    const size_t rows = (size_t)n_pos * (size_t)(n_layer + 1);
    bool ok = true;
    for (int h = 0; h < 2; h++) {
        a->sum[h] = calloc(rows * (size_t)n_embd, sizeof(double));
        a->square[h] = calloc(rows, sizeof(double));
        ok = ok && a->sum[h] && a->square[h];
    }
    a->size = calloc((size_t)(n_layer + 1) * (size_t)n_embd, sizeof(double));
    return (ok && a->size) || err_set(e, "no memory for the means of %d layers at %d positions", n_layer, n_pos);
}

void means_free(Means *a) {
    for (int h = 0; h < 2; h++) {
        free(a->sum[h]);
        free(a->square[h]);
    }
    free(a->size);
    *a = (Means){0};
}

void means_add(Means *a, int half, int pos, int layer, const float *x) {
    const int64_t at = means_at(a, pos, layer);
    double *sum = a->sum[half] + at * a->n_embd, *size = a->size + (int64_t)layer * a->n_embd, square = 0;
    for (int i = 0; i < a->n_embd; i++) {
        sum[i] += x[i];
        size[i] += fabs((double)x[i]);
        square += (double)x[i] * x[i];
    }
    a->square[half][at] += square;
}

double dot_of(const double *a, const double *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// Element k of the mean of one set; half -1: of both halves.
static double mean(const Means *a, int64_t k, int half) {
    return half < 0 ? (a->sum[0][k] + a->sum[1][k]) / (a->n[0] + a->n[1]) : a->sum[half][k] / a->n[half];
}

void mean_difference(const Means *t, const Means *c, int pos, int layer, int half, const bool *mask, double *out) {
    const int64_t at = means_at(t, pos, layer) * t->n_embd;
    for (int i = 0; i < t->n_embd; i++) out[i] = mask && mask[i] ? 0 : mean(t, at + i, half) - mean(c, at + i, half);
}

// |mean|^2, and with it tr(S) / n, S the covariance.
static double square_of_mean(const Means *a, int64_t at) {
    double sum = 0;
    for (int i = 0; i < a->n_embd; i++) {
        const double m = mean(a, at * a->n_embd + i, -1);
        sum += m * m;
    }
    return sum;
}

static double noise(const Means *a, int64_t at) {
    const double n = a->n[0] + a->n[1], variance = (a->square[0][at] + a->square[1][at] - n * square_of_mean(a, at)) / (n - 1);
    return n > 1 ? fmax(0, variance) / n : NAN;
}

Difference difference_of(const Means *t, const Means *c, int pos, int layer, const bool *mask, double *out, double *scratch) {
    const int n = t->n_embd;
    const int64_t at = means_at(t, pos, layer);
    double *other = scratch + n;
    Difference d = {.noise = noise(t, at) + noise(c, at)};
    mean_difference(t, c, pos, layer, -1, NULL, scratch);
    const double whole = dot_of(scratch, scratch, n), stream = sqrt(square_of_mean(c, at));
    mean_difference(t, c, pos, layer, 0, mask, scratch);
    mean_difference(t, c, pos, layer, 1, mask, other);
    const double lengths = sqrt(dot_of(scratch, scratch, n) * dot_of(other, other, n));
    d.halves = lengths > 0 ? dot_of(scratch, other, n) / lengths : 0;
    d.reliable = d.halves > 0 ? 2 * d.halves / (1 + d.halves) : 0;
    mean_difference(t, c, pos, layer, -1, mask, out);
    const double kept = dot_of(out, out, n);
    d.length = sqrt(kept);
    d.signal = d.noise > 0 ? kept / d.noise : 0;
    d.stream = stream > 0 ? d.length / stream : 0;
    d.masked = whole > 0 ? 1 - kept / whole : 0;
    return d;
}

static int by_double(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int massive_coordinates(const Means *t, const Means *c, bool *mask) {
    const int n = t->n_embd, layers = t->n_layer + 1;
    int *often = calloc((size_t)n, sizeof *often), found = 0;
    double *sorted = malloc(sizeof *sorted * (size_t)n);
    if (!often || !sorted) {
        free(often);
        free(sorted);
        return -1;
    }
    for (int side = 0; side < 2; side++) {
        const Means *a = side ? c : t;
        memset(often, 0, sizeof *often * (size_t)n);
        for (int l = 0; l < layers; l++) {
            const double *size = a->size + (int64_t)l * n;
            memcpy(sorted, size, sizeof *sorted * (size_t)n);
            qsort(sorted, (size_t)n, sizeof *sorted, by_double);
            for (int i = 0; i < n; i++) often[i] += size[i] > 100 * sorted[n / 2];
        }
        for (int i = 0; i < n; i++) mask[i] = (side == 0 || mask[i]) && 4 * often[i] >= layers;
    }
    for (int i = 0; i < n; i++) found += mask[i];
    free(often);
    free(sorted);
    return found;
}

static int by_float(const void *a, const void *b) {
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

void winsorise(float *x, int n, double share, float *scratch) {
    for (int i = 0; i < n; i++) scratch[i] = fabsf(x[i]);
    qsort(scratch, (size_t)n, sizeof *scratch, by_float);
    const float most = scratch[(int)(share * (n - 1))];
    for (int i = 0; i < n; i++) x[i] = fmaxf(-most, fminf(most, x[i]));
}
