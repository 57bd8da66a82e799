// rope_ref.c: rotary position embedding, in place (RoFormer, arXiv 2104.09864, equation 34)
#include <math.h>
#include "ref.h"

void rope_ref(Backend *b, float *x, const Rope *rope, int n_rows, int n_head, int head_dim, int pos) {
    (void)b;
    const int half = rope->n_rot / 2;
    for (int r = 0; r < n_rows; r++)
        for (int i = 0; i < half; i++) {
            const double angle = (pos + r) * rope->freq[i];
            const double c = cos(angle) * rope->magnitude, s = sin(angle) * rope->magnitude;
            const int first = rope->pairing == ROPE_ADJACENT ? 2 * i : i;
            const int second = rope->pairing == ROPE_ADJACENT ? 2 * i + 1 : i + half;
            for (int h = 0; h < n_head; h++) {
                float *head = x + ((int64_t)r * n_head + h) * head_dim;
                const double u = head[first], v = head[second];
                head[first] = (float)(u * c - v * s);
                head[second] = (float)(u * s + v * c);
            }
        }
}
