// rope_cpu.c: rotary position embedding, in place. Cosines and sines of a row are computed once for all its heads.
#include "cpu.h"

// cos and sin of a >= 0 to about 1e-13 while a < 2^20. a = n pi/2 + r with |r| <= pi/4; Taylor series of r; swap and sign by
// n mod 4. Without branches, so that a compiler can work on several angles at once. pi/2 is split in two for exact products.
static inline void turn(double a, double *cosine, double *sine) {
    const double shifted = a * 0.6366197723675814 + 0x1.8p52, n = shifted - 0x1.8p52; // adding 1.5 * 2^52 rounds to an integer
    const double r = (a - n * 0x1.921fb544p+0) - n * 0x1.0b4611a626331p-34, s = r * r;
    const double sin_r = r + r * s * (-1. / 6 + s * (1. / 120 + s * (-1. / 5040 + s * (1. / 362880 + s * (-1. / 39916800 + s / 6227020800.)))));
    const double cos_r = 1 + s * (-1. / 2 + s * (1. / 24 + s * (-1. / 720 + s * (1. / 40320 + s * (-1. / 3628800 + s / 479001600.)))));
    uint64_t quarter;
    memcpy(&quarter, &shifted, sizeof quarter);
    const double c = quarter & 1 ? sin_r : cos_r, d = quarter & 1 ? cos_r : sin_r;
    *cosine = (quarter + 1) & 2 ? -c : c;
    *sine = quarter & 2 ? -d : d;
}

static void rotate_head(float *x, const Rope *rope, const double *c, const double *s) {
    const int half = rope->n_rot / 2;
    if (rope->pairing == ROPE_ADJACENT)
        for (int i = 0; i < half; i++) {
            const double u = x[2 * i], v = x[2 * i + 1];
            x[2 * i] = (float)(u * c[i] - v * s[i]);
            x[2 * i + 1] = (float)(u * s[i] + v * c[i]);
        }
    else
        for (int i = 0; i < half; i++) {
            const double u = x[i], v = x[i + half];
            x[i] = (float)(u * c[i] - v * s[i]);
            x[i + half] = (float)(u * s[i] + v * c[i]);
        }
}

typedef struct {
    const Cpu *cpu;
    float *x;
    const Rope *rope;
    int n_head, head_dim, pos;
} Rotation;

static void rotate_row(const void *args, int r, int thread) {
    const Rotation *a = args;
    const int half = a->rope->n_rot / 2;
    double *c = a->cpu->rotation + (int64_t)thread * 2 * a->cpu->limits.head_dim, *s = c + a->cpu->limits.head_dim;
    for (int i = 0; i < half; i++) turn((a->pos + r) * a->rope->freq[i], &c[i], &s[i]);
    for (int i = 0; i < half; i++) {
        c[i] *= a->rope->magnitude;
        s[i] *= a->rope->magnitude;
    }
    for (int h = 0; h < a->n_head; h++) rotate_head(a->x + ((int64_t)r * a->n_head + h) * a->head_dim, a->rope, c, s);
}

void rope_cpu(Backend *b, float *x, const Rope *rope, int n_rows, int n_head, int head_dim, int pos) {
    assert(rope->n_rot <= cpu_of(b)->limits.head_dim);
    share(b, (int64_t)n_rows * n_head * head_dim, rotate_row, &(Rotation){cpu_of(b), x, rope, n_head, head_dim, pos}, n_rows);
}
