// compare.h: how far results are from what is expected.
#ifndef COMPARE_H
#define COMPARE_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

// |got - want| <= eps * size, element by element; false for anything that is not a number. size NULL: |want| + floor.
static inline bool close_to(const float *got, const float *want, const float *size, int64_t n, float eps, float floor, char text[128]) {
    for (int64_t i = 0; i < n; i++) {
        const float limit = eps * (size ? size[i] : fabsf(want[i]) + floor);
        if (fabsf(got[i] - want[i]) <= limit) continue;
        snprintf(text, 128, "element %lld is %.9g, expected %.9g +- %.2g", (long long)i, (double)got[i], (double)want[i], (double)limit);
        return false;
    }
    return true;
}

// sum (a-b)^2 / sum b^2; infinity when anything is not finite
static inline double nmse(const float *a, const float *b, int64_t n) {
    double diff = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        diff += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return isfinite(diff) && norm > 0 ? diff / norm : INFINITY;
}

#endif
