// vec_x86.h: the float helpers with vectors of WIDTH floats; included by vec_avx2.c and vec_avx512.c, which define the type V,
// WIDTH and the operations below it. n of load_n and store_n is the number of elements that exist, at most WIDTH.
#ifndef VEC_X86_H
#define VEC_X86_H

static inline V exp_of(V x) {
    x = v_min(v_set(EXP_HIGH), v_max(v_set(EXP_LOW), x)); // in this order a NaN stays NaN
    const V n = v_round(v_mul(x, v_set(LOG2_E)));
    const V r = v_nmadd(n, v_set(LN2_LOW), v_nmadd(n, v_set(LN2_HIGH), x));
    V p = v_madd(v_set(EXP_P0), r, v_set(EXP_P1));
    p = v_madd(p, r, v_set(EXP_P2));
    p = v_madd(p, r, v_set(EXP_P3));
    p = v_madd(p, r, v_set(EXP_P4));
    p = v_madd(p, r, v_set(EXP_P5));
    return v_mul(v_add(v_madd(p, v_mul(r, r), r), v_set(1)), v_power_of_two(n));
}

static inline V tanh_of(V x) {
    const V s = v_mul(x, x), a = v_abs(x);
    V t = v_madd(v_set(TANH_T0), s, v_set(TANH_T1));
    t = v_madd(t, s, v_set(TANH_T2));
    t = v_madd(t, s, v_set(TANH_T3));
    t = v_madd(t, s, v_set(TANH_T4));
    const V small = v_madd(v_mul(x, s), t, x);
    const V big = v_sub(v_set(1), v_div(v_set(2), v_add(exp_of(v_add(a, a)), v_set(1))));
    return v_if_less(a, v_set(TANH_SMALL), small, v_with_sign(big, x));
}

static float dot(const float *a, const float *b, int n) {
    V sum[4] = {v_set(0), v_set(0), v_set(0), v_set(0)};
    int i = 0;
    for (; i + 4 * WIDTH <= n; i += 4 * WIDTH)
        for (int k = 0; k < 4; k++) sum[k] = v_madd(v_load(a + i + k * WIDTH), v_load(b + i + k * WIDTH), sum[k]);
    for (; i < n; i += WIDTH) sum[0] = v_madd(v_load_n(a + i, n - i), v_load_n(b + i, n - i), sum[0]);
    return v_sum(v_add(v_add(sum[0], sum[1]), v_add(sum[2], sum[3])));
}

static void to_f16(F16 *y, const float *x, int n) {
    int i = 0;
    for (; i + WIDTH <= n; i += WIDTH) v_store_half(y + i, v_load(x + i));
    if (i < n) {
        F16 rest[WIDTH];
        v_store_half(rest, v_load_n(x + i, n - i));
        memcpy(y + i, rest, sizeof(F16) * (size_t)(n - i));
    }
}

static void to_q8_0(int8_t *code, F16 *scale, const float *x, int n) {
    for (int i = 0; i < n; i += 32) {
        V most = v_abs(v_load(x + i));
        for (int k = WIDTH; k < 32; k += WIDTH) most = v_max(most, v_abs(v_load(x + i + k)));
        float lane[WIDTH], top = 0;
        v_store(lane, most);
        for (int k = 0; k < WIDTH; k++) top = lane[k] > top ? lane[k] : top;
        const float d = top / 127;
        scale[i / 32] = f16_from_f32(d);
        for (int k = 0; k < 32; k += WIDTH) v_store_codes(code + i + k, v_mul(v_load(x + i + k), v_set(d > 0 ? 1 / d : 0)));
    }
}

static inline V load_half_n(const F16 *p, int n) {
    F16 rest[WIDTH] = {0};
    memcpy(rest, p, sizeof(F16) * (size_t)n);
    return v_load_half(rest);
}

// Keys and values are read in order, from memory when the context is long: so far ahead that they arrive in time. Two cache lines or
// more of a row are fetched one by one, as they are read.
enum { KEYS_AHEAD = 4096, VALUES_AHEAD = 64 }; // bytes; rows
enum { LINE_HALVES = 32, LINE_CODES = 64 };    // of a cache line

#define INLINE static inline __attribute__((always_inline))

// sum[r][m] += q[r] . key j + m, lane by lane
INLINE void add_halves(V sum[][4], const float *const *q, const int n_q, const KeySpan *k, int j, const int n_key) {
    const F16 *row[4];
    for (int m = 0; m < n_key; m++) row[m] = span_row(k, j + m);
    int i = 0;
    for (; i + WIDTH <= k->head_dim; i += WIDTH)
        for (int m = 0; m < n_key; m++) {
            const V x = v_load_half(row[m] + i);
            if (i % LINE_HALVES == 0) _mm_prefetch((const char *)(row[m] + i) + KEYS_AHEAD, _MM_HINT_T0);
            for (int r = 0; r < n_q; r++) sum[r][m] = v_madd(x, v_load(q[r] + i), sum[r][m]);
        }
    if (i < k->head_dim)
        for (int m = 0; m < n_key; m++) {
            const V x = load_half_n(row[m] + i, k->head_dim - i);
            for (int r = 0; r < n_q; r++) sum[r][m] = v_madd(x, v_load_n(q[r] + i, k->head_dim - i), sum[r][m]);
        }
}

// The same of codes. A code times its scale is exact.
INLINE void add_codes(V sum[][4], const float *const *q, const int n_q, const KeySpan *k, int j, const int n_key) {
    const int8_t *row[4];
    const F16 *scale[4];
    for (int m = 0; m < n_key; m++) row[m] = span_codes(k, j + m), scale[m] = span_scales(k, j + m);
    for (int i = 0; i < k->head_dim; i += 32)
        for (int m = 0; m < n_key; m++) {
            const V d = v_set_half(scale[m] + i / 32);
            if (i % LINE_CODES == 0) _mm_prefetch((const char *)(row[m] + i) + KEYS_AHEAD, _MM_HINT_T0);
            for (int part = 0; part < 32; part += WIDTH) {
                const V x = v_mul(v_load_codes(row[m] + i + part), d);
                for (int r = 0; r < n_q; r++) sum[r][m] = v_madd(x, v_load(q[r] + i + part), sum[r][m]);
            }
        }
}

// n_key <= 4 keys at a time against n_q queries: one accumulator for each pair. The sums over lanes are formed four at a time, in
// one order wherever a pair stands.
INLINE void keys_tile(float *score, int64_t stride, const float *const *q, const int n_q, const KeySpan *k, int j, const int n_key, const bool codes) {
    V sum[VEC_ROWS][4];
    for (int r = 0; r < n_q; r++)
        for (int m = 0; m < 4; m++) sum[r][m] = v_set(0);
    if (codes) add_codes(sum, q, n_q, k, j, n_key);
    else add_halves(sum, q, n_q, k, j, n_key);
    for (int r = 0; r < n_q; r++) {
        const __m128 four = v_sum_each(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
        if (n_key == 4) _mm_storeu_ps(score + r * stride + j, four);
        else {
            float each[4];
            _mm_storeu_ps(each, four);
            for (int m = 0; m < n_key; m++) score[r * stride + j + m] = each[m];
        }
    }
}

INLINE void keys_rows(float *score, int64_t stride, const float *const *q, const KeySpan *k, const int n_q, const bool codes) {
    int j = 0;
    for (; j + 4 <= k->n_key && n_q <= KEYS_FOUR; j += 4) keys_tile(score, stride, q, n_q, k, j, 4, codes);
    for (; j + 2 <= k->n_key; j += 2) keys_tile(score, stride, q, n_q, k, j, 2, codes);
    if (j < k->n_key) keys_tile(score, stride, q, n_q, k, j, 1, codes);
}

#define FOR_EACH_COUNT(function, type, ...) /* so that the number of queries is a constant */ \
    switch (n_q) { \
    case 1: function(__VA_ARGS__, 1, type); break; \
    case 2: function(__VA_ARGS__, 2, type); break; \
    case 3: function(__VA_ARGS__, 3, type); break; \
    default: function(__VA_ARGS__, 4, type); break; \
    }

static void keys(float *score, int64_t stride, const float *const *q, int n_q, const KeySpan *k) {
    if (k->scale) FOR_EACH_COUNT(keys_rows, true, score, stride, q, k)
    else FOR_EACH_COUNT(keys_rows, false, score, stride, q, k)
}

INLINE void values_rows(float *const *y, const float *p, int64_t stride, const KeySpan *v, const int n_q, const bool codes) {
    int i = 0;
    for (; i + 2 * WIDTH <= v->head_dim; i += 2 * WIDTH) { // two columns of vectors: enough independent sums
        V sum[VEC_ROWS][2];
        for (int r = 0; r < n_q; r++) sum[r][0] = sum[r][1] = v_set(0);
        for (int j = 0; j < v->n_key; j++) {
            V x0, x1;
            if (codes) {
                const int8_t *code = span_codes(v, j) + i;
                const V d = v_set_half(span_scales(v, j) + i / 32);
                x0 = v_mul(v_load_codes(code), d), x1 = v_mul(v_load_codes(code + WIDTH), d);
                if (i % (LINE_CODES) == 0) _mm_prefetch((const char *)(code + (int64_t)VALUES_AHEAD * v->head_dim), _MM_HINT_T0);
            } else {
                const F16 *row = span_row(v, j) + i;
                x0 = v_load_half(row), x1 = v_load_half(row + WIDTH);
                if (i % LINE_HALVES == 0) _mm_prefetch((const char *)(row + (int64_t)VALUES_AHEAD * v->head_dim), _MM_HINT_T0);
            }
            for (int r = 0; r < n_q; r++) {
                const V weight = v_set(p[r * stride + j]);
                sum[r][0] = v_madd(weight, x0, sum[r][0]);
                sum[r][1] = v_madd(weight, x1, sum[r][1]);
            }
        }
        for (int r = 0; r < n_q; r++)
            for (int k = 0; k < 2; k++) v_store(y[r] + i + k * WIDTH, v_add(v_load(y[r] + i + k * WIDTH), sum[r][k]));
    }
    for (; i < v->head_dim; i += WIDTH) {
        const int n = min_int(WIDTH, v->head_dim - i);
        V sum[VEC_ROWS];
        for (int r = 0; r < n_q; r++) sum[r] = v_set(0);
        for (int j = 0; j < v->n_key; j++) {
            const V x = load_half_n(span_row(v, j) + i, n);
            for (int r = 0; r < n_q; r++) sum[r] = v_madd(v_set(p[r * stride + j]), x, sum[r]);
        }
        for (int r = 0; r < n_q; r++) v_store_n(y[r] + i, v_add(v_load_n(y[r] + i, n), sum[r]), n);
    }
}

static void values(float *const *y, const float *p, int64_t stride, int n_q, const KeySpan *v) {
    if (v->scale) FOR_EACH_COUNT(values_rows, true, y, p, stride, v)
    else FOR_EACH_COUNT(values_rows, false, y, p, stride, v)
}

static float exp_sum(float *x, float highest, int n) {
    V sum = v_set(0);
    int i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        const V e = exp_of(v_sub(v_load(x + i), v_set(highest)));
        v_store(x + i, e);
        sum = v_add(sum, e);
    }
    if (i < n) {
        v_store_n(x + i, exp_of(v_sub(v_load_n(x + i, n - i), v_set(highest))), n - i);
        sum = v_add(sum, v_load_n(x + i, n - i));
    }
    return v_sum(sum);
}

static float largest(const float *x, int n) {
    float top = x[0];
    int i = 0;
    if (n >= WIDTH) {
        V v = v_load(x);
        for (i = WIDTH; i + WIDTH <= n; i += WIDTH) v = v_max(v, v_load(x + i));
        float lane[WIDTH];
        v_store(lane, v);
        for (int k = 0; k < WIDTH; k++) top = lane[k] > top ? lane[k] : top;
    }
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    return top;
}

static void softcap(float *x, float cap, int64_t n) {
    const V c = v_set(cap), inverse = v_set(1 / cap);
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) v_store(x + i, v_mul(c, tanh_of(v_mul(v_load(x + i), inverse))));
    if (i < n) v_store_n(x + i, v_mul(c, tanh_of(v_mul(v_load_n(x + i, (int)(n - i)), inverse))), (int)(n - i));
}

static inline V activate(V x, Activation act) {
    const V one = v_set(1);
    if (act == ACT_SILU) return v_div(x, v_add(one, exp_of(v_sub(v_set(0), x))));
    const V cube = v_madd(v_mul(v_set(GELU_CUBIC), v_mul(x, x)), x, x);
    return v_div(x, v_add(one, exp_of(v_mul(v_set(-GELU_TWICE_ROOT), cube))));
}

static void gated(float *y, const float *gate, const float *up, int64_t n, Activation act) {
    int64_t i = 0;
    for (; i + WIDTH <= n; i += WIDTH) v_store(y + i, v_mul(activate(v_load(gate + i), act), v_load(up + i)));
    const int rest = (int)(n - i);
    if (rest) v_store_n(y + i, v_mul(activate(v_load_n(gate + i, rest), act), v_load_n(up + i, rest)), rest);
}

static const VecTable TABLE = {
    .dot = dot, .to_f16 = to_f16, .to_q8_0 = to_q8_0, .keys = keys, .values = values, .exp_sum = exp_sum, .largest = largest, .softcap = softcap, .gated = gated,
};

#endif
