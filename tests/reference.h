// reference.h: the files of ../shared/reference, the independent engine's outputs, and how near to them is near enough.
#ifndef REFERENCE_H
#define REFERENCE_H

#include "compare.h"
#include "session.h"
#include "test.h"

static const struct {
    const char *name;
    double nmse, kl_mean, kl_max, top1; // of the independent engine with 8-bit activations
    bool residual;
} FILES[] = {
    {"gemma1-Q4_K_M", 2.29e-03, 4.10e-03, 1.19e-02, 0.938, true},
    {"gemma2-Q4_K_M", 5.64e-03, 2.89e-03, 2.46e-02, 1.000, true},
    {"gemma3-Q4_K_M", 1.12e-03, 1.66e-03, 3.78e-03, 1.000, true},
    {"gemma3n-Q8_0", 1.23e-03, 2.16e-03, 9.07e-03, 0.979, false},
    {"gemma4-dense-Q4_K_M", 9.51e-03, 1.54e-02, 3.74e-02, 0.896, true},
    {"gemma4-e-Q4_K_M", 7.37e-03, 1.28e-02, 5.28e-02, 0.896, true},
    {"gemma4-moe-Q4_K_M", 1.26e-02, 2.56e-02, 1.28e-01, 0.833, true},
    {"llama-moe-Q4_K_M", 5.09e-03, 1.80e-02, 1.28e-01, 0.958, true},
    {"llama2-tied-Q4_K_M", 5.39e-03, 2.27e-02, 1.03e-01, 0.938, true},
    {"llama3-F16", 1.98e-06, 6.54e-06, 2.11e-05, 1.000, true},
    {"llama3-Q4_K_M", 2.27e-03, 8.36e-03, 3.87e-02, 0.979, true},
    {"llama3-Q8_0", 9.41e-04, 3.42e-03, 1.46e-02, 0.958, true},
};
enum { N_TOKEN = 48, N_FILE = sizeof FILES / sizeof *FILES };

// False: it is not there (counted as skipped), or does not open (as failed).
static inline bool open_reference(int which, Model *m) {
    char path[128];
    Err e;
    snprintf(path, sizeof path, "reference/%s.gguf", FILES[which].name);
    if (!shared_path(path)) {
        test_skip(path);
        return false;
    }
    const bool ok = model_open(m, shared_path(path), &e);
    if (!ok) CHECK(false, "%s", e.text);
    return ok;
}

static inline float *read_floats(const char *path, size_t n) {
    FILE *f = path ? fopen(path, "rb") : NULL;
    float *x = f ? malloc(sizeof(float) * n) : NULL;
    const bool whole = x && fread(x, sizeof(float), n, f) == n && fgetc(f) == EOF;
    if (f) fclose(f);
    if (!whole) {
        free(x);
        return NULL;
    }
    return x;
}

static inline double log_sum(const float *x, int n) {
    double highest = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) highest = fmax(highest, x[i]);
    for (int i = 0; i < n; i++) sum += exp(x[i] - highest);
    return highest + log(sum);
}

static inline void divergence(const float *a, const float *b, int n_vocab, double *mean, double *worst, double *top1) {
    *mean = *worst = *top1 = 0;
    for (int t = 0; t < N_TOKEN; t++, a += n_vocab, b += n_vocab) {
        const double za = log_sum(a, n_vocab), zb = log_sum(b, n_vocab);
        double kl = 0;
        int best_a = 0, best_b = 0;
        for (int i = 0; i < n_vocab; i++) {
            kl += exp(b[i] - zb) * ((b[i] - zb) - (a[i] - za));
            if (a[i] > a[best_a]) best_a = i;
            if (b[i] > b[best_b]) best_b = i;
        }
        *mean += kl / N_TOKEN;
        *worst = fmax(*worst, kl);
        *top1 += (best_a == best_b) / (double)N_TOKEN;
    }
}

typedef struct {
    float *logits, *residual;
    int n_vocab, n_embd;
} Outputs;

static inline void keep_logits(void *ctx, const float *logits, int seq, int pos) {
    Outputs *o = ctx;
    (void)seq;
    memcpy(o->logits + (size_t)pos * (size_t)o->n_vocab, logits, sizeof(float) * (size_t)o->n_vocab);
}

// The limits of ../shared/reference/README.md: at most 1.2 times the independent engine's own error; worst_limit times, 1.2 but
// where a caller says why, for the worst token. how: the name of the case after the file's; printed when verbose. Returns the NMSE.
static inline double check_reference(int which, const char *how, const float *logits, const float *want, int n_vocab, double worst_limit, bool verbose) {
    const char *name = FILES[which].name;
    const double err = nmse(logits, want, (int64_t)N_TOKEN * n_vocab);
    double mean, worst, top1;
    divergence(logits, want, n_vocab, &mean, &worst, &top1);
    if (verbose)
        printf("%-20s %-26s NMSE %.2e (%.2f)  KL %.2e (%.2f)  max %.2e (%.2f)  top-1 %.3f (%.3f)\n", name, how, err, err / FILES[which].nmse, mean,
               mean / FILES[which].kl_mean, worst, worst / FILES[which].kl_max, top1, FILES[which].top1);
    CHECK(err <= 1.2 * FILES[which].nmse, "%s %s: NMSE %.2e, expected <= 1.2 x %.2e", name, how, err, FILES[which].nmse);
    CHECK(mean <= 1.2 * FILES[which].kl_mean, "%s %s: mean KL %.2e, expected <= 1.2 x %.2e", name, how, mean, FILES[which].kl_mean);
    CHECK(worst <= worst_limit * FILES[which].kl_max, "%s %s: max KL %.2e, expected <= %g x %.2e", name, how, worst, worst_limit, FILES[which].kl_max);
    CHECK(top1 >= FILES[which].top1 / 1.2, "%s %s: same top-1 %.3f, expected >= %.3f / 1.2", name, how, top1, FILES[which].top1);
    return err;
}

#endif
