// test_quant.c: every weight format in both directions. Checksums are those of llama.cpp's compiled library (August 2026) for
// made-up blocks (into float32) and for 256 exact values X (out of it, with and without importance), so that an error in
// any bit of any format shows. Then float16 and bfloat16 over all their values, and input that no model should hold.
#include <float.h>
#include <math.h>
#include "quant.h"
#include "test.h"

static uint32_t crc32(const void *p, size_t n) { // IEEE 802.3, as in zlib
    uint32_t crc = 0xffffffff;
    for (size_t i = 0; i < n; i++) {
        crc ^= ((const uint8_t *)p)[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return ~crc;
}

static float X[256], IMPORTANCE[256], A[256];

static void make_inputs(void) {
    for (uint32_t i = 0; i < 256; i++) {
        X[i] = (float)((int)((i + 1) * 2654435761u >> 8) - 8388608) * 0x1p-26f * (i % 37 ? 1 : 4);
        A[i] = (float)((int)((i + 7) * 2246822519u >> 8) - 8388608) * 0x1p-23f;
        IMPORTANCE[i] = (float)(1 + i % 7);
    }
}

// ---- the type table ----

static void test_table(void) {
    static const struct {
        int type, block, bytes;
        const char *name;
    } known[] = {
        {0, 1, 4, "F32"},       {1, 1, 2, "F16"},       {2, 32, 18, "Q4_0"},      {3, 32, 20, "Q4_1"},     {6, 32, 22, "Q5_0"},
        {7, 32, 24, "Q5_1"},    {8, 32, 34, "Q8_0"},    {9, 32, 36, "Q8_1"},      {10, 256, 84, "Q2_K"},   {11, 256, 110, "Q3_K"},
        {12, 256, 144, "Q4_K"}, {13, 256, 176, "Q5_K"}, {14, 256, 210, "Q6_K"},   {15, 256, 292, "Q8_K"},  {16, 256, 66, "IQ2_XXS"},
        {17, 256, 74, "IQ2_XS"}, {18, 256, 98, "IQ3_XXS"}, {19, 256, 50, "IQ1_S"}, {20, 32, 18, "IQ4_NL"}, {21, 256, 110, "IQ3_S"},
        {22, 256, 82, "IQ2_S"}, {23, 256, 136, "IQ4_XS"}, {24, 1, 1, "I8"},       {25, 1, 2, "I16"},       {26, 1, 4, "I32"},
        {27, 1, 8, "I64"},      {28, 1, 8, "F64"},      {29, 256, 56, "IQ1_M"},   {30, 1, 2, "BF16"},      {34, 256, 54, "TQ1_0"},
        {35, 256, 66, "TQ2_0"}, {39, 32, 17, "MXFP4"},  {40, 64, 36, "NVFP4"},    {41, 128, 18, "Q1_0"},   {42, 64, 18, "Q2_0"},
    };
    size_t row = 0;
    for (int type = -2; type < 300; type++) {
        const TypeInfo *t = type_info(type);
        if (row < sizeof known / sizeof *known && known[row].type == type) {
            CHECK(t && t->block == known[row].block && t->bytes == known[row].bytes && !strcmp(t->name, known[row].name), "type %d is not %s, %d elements in %d bytes",
                  type, known[row].name, known[row].block, known[row].bytes);
            CHECK(type_by_name(known[row].name) == type, "type_by_name(%s)", known[row].name);
            row++;
        } else {
            CHECK(!t, "type %d was removed or never existed, but has a row", type);
        }
    }
    CHECK(type_by_name("q4_k") == TYPE_Q4_K && type_by_name("") == -1 && type_by_name("Q4_K_M") == -1, "type_by_name: case and unknown names");
    CHECK(type_row_bytes(TYPE_Q6_K, 512) == 420 && type_row_bytes(TYPE_F16, 3) == 6, "type_row_bytes");

    const char bytes[2 * 3 * 34] = {0};
    const void *slices[2] = {bytes, bytes + 3 * 34};
    const Tensor t = {.type = TYPE_Q8_0, .n_row = 3, .n_col = 32, .n_slice = 2, .host = bytes, .slices = slices};
    CHECK(tensor_bytes(&t) == sizeof bytes, "tensor_bytes");
    CHECK(tensor_row(&t, 1, 2) == bytes + 5 * 34 && tensor_row(&t, 0, 1) == bytes + 34, "tensor_row");
}

// ---- blocks to float32 ----

static const struct {
    TensorType type;
    int d, m; // byte offsets of the two f16 fields, -1 = none
    uint32_t crc;
    float first[4], middle, last, sum;
} BLOCKS[] = {
    {TYPE_Q4_0, 0, -1, 0xab93e51c, {-1.25f, 1, -0.75f, 1.5f}, 0.5f, -1.25f, -3.5f},
    {TYPE_Q4_1, 0, 2, 0xcddd5d3a, {1.375f, 3.625f, 1.875f, 0.125f}, 0.875f, 3.125f, 64.5f},
    {TYPE_Q5_0, 0, -1, 0x9c48b45f, {1.75f, 0, -3.5f, -1.25f}, 3, -2.5f, 4.75f},
    {TYPE_Q5_1, 0, 2, 0x1462c76d, {4.625f, 2.875f, 5.125f, 3.375f}, 6.125f, 3.875f, 128.75f},
    {TYPE_Q8_0, 0, -1, 0x2f3ed38f, {-23.25f, -5, 13.25f, 31.5f}, -30.75f, 7.5f, -78},
    {TYPE_Q2_K, 80, 82, 0x218b4389, {0.625f, -0.125f, 0.125f, 0.375f}, 0.5f, -1, 422.5f},
    {TYPE_Q3_K, 108, -1, 0xad2f413b, {3.25f, -6.5f, 9.75f, -13}, -6.75f, -1.25f, -24.25f},
    {TYPE_Q4_K, 0, 2, 0xef42bb40, {39.5f, 158.75f, 66, 185.25f}, 11.25f, -0.75f, 13305.25f},
    {TYPE_Q5_K, 0, 2, 0xcc46c6e0, {304.5f, -0.25f, 331, 26.25f}, 41.25f, -1.75f, 27929.75f},
    {TYPE_Q6_K, 208, -1, 0x085c1821, {326.25f, -217.5f, -413.25f, 435}, -45.5f, -137.5f, 4255.5f},
    {TYPE_IQ4_NL, 0, -1, 0x7a979e73, {-16.25f, 13.25f, -8.75f, 22.25f}, 6.25f, -16.25f, -35.75f},
    {TYPE_IQ4_XS, 0, -1, 0x5d19bd5d, {-435.75f, 199.5f, -257.25f, 362.25f}, -156.25f, -352.75f, -607.25f},
    {TYPE_MXFP4, -1, -1, 0x78257cda, {-0.5f, 0.75f, -1, 1.5f}, 1.5f, -3, -1},
};
enum { N_BLOCK = sizeof BLOCKS / sizeof *BLOCKS };

static void test_to_f32(void) {
    for (int row = 0; row < N_BLOCK; row++) {
        const TypeInfo *t = type_info((int)BLOCKS[row].type);
        uint8_t block[2 * 256 + 1], *b = block + 1; // an odd address, as in files with alignment 1
        for (int k = 0; k < t->bytes; k++) b[k] = (uint8_t)(73 * k + 41 * (k >> 3) + 17);
        const F16 d = 0x3400, m = 0x3000; // 0.25, 0.125
        if (BLOCKS[row].d >= 0) memcpy(b + BLOCKS[row].d, &d, 2);
        if (BLOCKS[row].m >= 0) memcpy(b + BLOCKS[row].m, &m, 2);
        if (BLOCKS[row].type == TYPE_MXFP4) b[0] = 126;
        memcpy(b + t->bytes, b, (size_t)t->bytes); // a second block, to see that both are read

        float w[512], sum = 0;
        t->to_f32(b, w, 2 * t->block);
        CHECK(!memcmp(w, w + t->block, sizeof *w * (size_t)t->block), "%s: equal blocks give different values", t->name);
        for (int i = 0; i < t->block; i++) {
            w[i] += 0.0f; // -0 becomes 0
            sum += w[i];
        }
        const uint32_t crc = crc32(w, sizeof *w * (size_t)t->block);
        CHECK(crc == BLOCKS[row].crc, "%s to f32: CRC %08x, expected %08x", t->name, crc, BLOCKS[row].crc);
        CHECK(!memcmp(w, BLOCKS[row].first, sizeof BLOCKS[row].first), "%s to f32: begins %g %g %g %g", t->name, (double)w[0], (double)w[1], (double)w[2], (double)w[3]);
        CHECK(w[t->block / 2] == BLOCKS[row].middle && w[t->block - 1] == BLOCKS[row].last && sum == BLOCKS[row].sum, "%s to f32: middle %g, last %g, sum %g", t->name,
              (double)w[t->block / 2], (double)w[t->block - 1], (double)sum);
    }
    CHECK(mxfp4_scale(0) == 0x1p-128f && mxfp4_scale(1) == 0x1p-127f && mxfp4_scale(2) == 0x1p-126f && mxfp4_scale(254) == 0x1p126f, "mxfp4_scale");
}

// ---- float32 to blocks ----

static const struct {
    TensorType type;
    uint32_t crc, crc_importance; // 0 = the format ignores importance
    const char *first;            // hexadecimal
    double rmse, rmse_importance; // 0 = not in the table
} ROWS[] = {
    {TYPE_Q8_0, 0x4877ff28, 0, "b8137dba5ef99337", 0, 0},
    {TYPE_Q4_0, 0xf80aa8f9, 1, "a9a380ec42a80f65", 0, 0},
    {TYPE_Q4_1, 0xc6c49e91, 1, "072473af8f13bd57", 0, 0},
    {TYPE_Q5_0, 0xef44b407, 1, "a99f5a5a4b4b00d9", 0, 0},
    {TYPE_Q5_1, 0x5c2f6bf6, 1, "cc1f73afa5a5b5b4", 0, 0},
    {TYPE_MXFP4, 0xdea8ca33, 0, "7907fe67c97f35ed", 0, 0},
    {TYPE_IQ4_NL, 0x5cb3b211, 1, "", 0, 0},
    {TYPE_Q4_K, 0x302d51d8, 0xa3a3bab2, "ee109b1edadadc6cd253576bfb2f203b", 0.00712021, 0.00700405},
    {TYPE_Q5_K, 0x182ab1c7, 0x73dff39f, "d10caf1edadbdd6cd253566bfb2f213b", 0.00363232, 0.00365734},
    {TYPE_Q6_K, 0xf1b25d04, 0xfbe0b017, "e002b8628c325c02bcd60ca65f0620d5", 0.00184045, 0.00186312},
    {TYPE_IQ4_XS, 0xc9f7eecf, 0xe43c8d37, "5007e583774a0d9980ed32b80f64db21", 0.00820716, 0.00813783},
    {TYPE_Q2_K, 0x546a738d, 0x1a305de2, "463546365646af45", 0, 0},
    {TYPE_Q3_K, 0xc1c4a0ae, 0xf6e7c9e4, "68bd42e99f42bd16", 0, 0},
};
enum { N_ROW = sizeof ROWS / sizeof *ROWS, UNKNOWN_CRC = 1 };

static double rmse(const float *a, const float *b, const float *weight) {
    double sum = 0, total = 0;
    for (int i = 0; i < 256; i++) {
        const double w = weight ? (double)weight[i] : 1;
        sum += w * ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        total += w;
    }
    return sqrt(sum / total);
}

static void test_from_f32(void) {
    for (int row = 0; row < N_ROW; row++) {
        const TypeInfo *t = type_info((int)ROWS[row].type);
        const size_t bytes = (size_t)(256 / t->block * t->bytes);
        uint8_t plain[512], with[512];
        memset(plain, 0xaa, sizeof plain);
        memset(with, 0x55, sizeof with); // every byte must be written, and none beyond
        t->from_f32(X, plain, 256, NULL);
        t->from_f32(X, with, 256, IMPORTANCE);
        CHECK(plain[bytes] == 0xaa && with[bytes] == 0x55, "%s writes beyond its row", t->name);

        const uint32_t crc = crc32(plain, bytes), crc_with = crc32(with, bytes);
        CHECK(crc == ROWS[row].crc, "%s plain: CRC %08x, expected %08x", t->name, crc, ROWS[row].crc);
        const uint32_t want = ROWS[row].crc_importance;
        if (want == 0) CHECK(crc_with == crc, "%s: importance must not matter", t->name);
        else if (want != UNKNOWN_CRC) CHECK(crc_with == want, "%s with importance: CRC %08x, expected %08x", t->name, crc_with, want);
        for (size_t i = 0; ROWS[row].first[2 * i]; i++) {
            char hex[3];
            snprintf(hex, sizeof hex, "%02x", plain[i]);
            CHECK(!strncmp(hex, ROWS[row].first + 2 * i, 2), "%s: byte %zu is %s, expected %.2s", t->name, i, hex, ROWS[row].first + 2 * i);
        }

        float back[256], back_with[256];
        t->to_f32(plain, back, 256);
        t->to_f32(with, back_with, 256);
        const double err = rmse(back, X, NULL), err_with = rmse(back_with, X, NULL);
        if (ROWS[row].rmse > 0) {
            CHECK(fabs(err / ROWS[row].rmse - 1) < 1e-4, "%s: rmse %.8f, expected %.8f", t->name, err, ROWS[row].rmse);
            CHECK(fabs(err_with / ROWS[row].rmse_importance - 1) < 1e-4, "%s with importance: rmse %.8f, expected %.8f", t->name, err_with, ROWS[row].rmse_importance);
        }
        // Importance is there to lower the error that it weighs; Q5_K gains nothing from these made-up weights.
        if (want) CHECK(rmse(back_with, X, IMPORTANCE) < 1.03 * rmse(back, X, IMPORTANCE), "%s: importance makes the weighted error larger", t->name);
    }

    float copy[256];
    uint16_t half[256];
    type_info(TYPE_F32)->from_f32(X, copy, 256, NULL);
    CHECK(!memcmp(copy, X, sizeof X), "F32 is not copied");
    for (int bf = 0; bf < 2; bf++) {
        const TypeInfo *t = type_info(bf ? TYPE_BF16 : TYPE_F16);
        t->from_f32(X, half, 256, NULL);
        t->to_f32(half, copy, 256);
        int wrong = 0;
        for (int i = 0; i < 256; i++) wrong += half[i] != (bf ? bf16_from_f32(X[i]) : f16_from_f32(X[i])) || copy[i] != (bf ? bf16_to_f32(half[i]) : f16_to_f32(half[i]));
        CHECK(!wrong, "%s: %d of 256 elements differ from the scalar conversion", t->name, wrong);
    }
}

// ---- products with 8-bit activations, the way llama.cpp makes them ----

static double dot_with(TensorType weights, const float *activations) {
    uint8_t blocks[512];
    float w[256];
    double sum = 0;
    type_info((int)weights)->from_f32(X, blocks, 256, NULL);
    type_info((int)weights)->to_f32(blocks, w, 256);
    for (int i = 0; i < 256; i++) sum += (double)w[i] * activations[i];
    return sum;
}

static void test_dots(void) {
    uint8_t q8_0[272];
    struct { float d; int8_t qs[256]; int16_t sums[16]; } q8_k = {0};
    float a8_0[256], a8_k[256], max = 0;
    quantize_q8_0(A, q8_0, 256, NULL);
    type_info(TYPE_Q8_0)->to_f32(q8_0, a8_0, 256);
    CHECK(crc32(q8_0, sizeof q8_0) == 0xde697b8a, "Q8_0 activations: CRC %08x, expected de697b8a", crc32(q8_0, sizeof q8_0));

    for (int i = 0; i < 256; i++) max = fabsf(A[i]) > fabsf(max) ? A[i] : max;
    const float inv = -127 / max;
    q8_k.d = 1 / inv;
    for (int i = 0; i < 256; i++) {
        const float q = rintf(inv * A[i]);
        q8_k.qs[i] = (int8_t)(q < 127 ? q : 127);
        q8_k.sums[i / 16] = (int16_t)(q8_k.sums[i / 16] + q8_k.qs[i]);
        a8_k[i] = q8_k.d * q8_k.qs[i];
    }
    CHECK(sizeof q8_k == 292 && crc32(&q8_k, sizeof q8_k) == 0x7afc1d55, "Q8_K activations: CRC %08x, expected 7afc1d55", crc32(&q8_k, sizeof q8_k));

    const struct {
        TensorType type;
        const float *a;
        double want;
    } dots[] = {{TYPE_F32, A, -0.1445211}, {TYPE_Q8_0, a8_0, -0.1472774}, {TYPE_Q4_0, a8_0, -0.1033097}, {TYPE_Q4_K, a8_k, -0.1236851},
                {TYPE_Q5_K, a8_k, -0.1635143}, {TYPE_Q6_K, a8_k, -0.1769992}};
    for (size_t i = 0; i < sizeof dots / sizeof *dots; i++) {
        if (dots[i].type == TYPE_F32) {
            double sum = 0;
            for (int k = 0; k < 256; k++) sum += (double)X[k] * A[k];
            CHECK(fabs(sum - dots[i].want) < 1e-6, "f32 product %.7f, expected %.7f", sum, dots[i].want);
        } else {
            const double dot = dot_with(dots[i].type, dots[i].a);
            CHECK(fabs(dot - dots[i].want) < 1e-6, "%s product %.7f, expected %.7f", type_info((int)dots[i].type)->name, dot, dots[i].want);
        }
    }
}

// ---- float16 and bfloat16 ----

static uint32_t bits_of(float x) {
    uint32_t b;
    memcpy(&b, &x, sizeof b);
    return b;
}

static void test_f16(void) {
    int wrong_value = 0, wrong_back = 0, wrong_tie = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        const int exponent = h >> 10 & 31, fraction = h & 1023;
        const float x = f16_to_f32((F16)h);
        if (exponent == 31 && fraction) {
            wrong_value += x == x;
            wrong_back += (f16_from_f32(x) & 0x7c00) != 0x7c00 || !(f16_from_f32(x) & 1023);
            continue;
        }
        const double want = exponent == 31 ? (double)INFINITY : exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);
        wrong_value += x != (h >> 15 ? -want : want) || (bits_of(x) >> 31) != h >> 15;
        wrong_back += f16_from_f32(x) != h;
        if ((h & 0x7fff) >= 0x7bff) continue;
        const float next = f16_to_f32((F16)(h + 1)), middle = (x + next) / 2; // exact: one bit more
        const F16 even = (F16)(h & 1 ? h + 1 : h);
        wrong_tie += f16_from_f32(middle) != even;
        wrong_tie += f16_from_f32(nextafterf(middle, x)) != h || f16_from_f32(nextafterf(middle, next)) != h + 1;
    }
    CHECK(!wrong_value, "f16_to_f32: %d of 65536 values are wrong", wrong_value);
    CHECK(!wrong_back, "f16: %d of 65536 values do not survive the way to f32 and back", wrong_back);
    CHECK(!wrong_tie, "f16_from_f32: %d roundings between neighbours are wrong", wrong_tie);
    CHECK(f16_from_f32(65504) == 0x7bff && f16_from_f32(nextafterf(65520, 0)) == 0x7bff, "f16: just below 65520 is 65504");
    CHECK(f16_from_f32(65520) == 0x7c00 && f16_from_f32(FLT_MAX) == 0x7c00 && f16_from_f32(-INFINITY) == 0xfc00, "f16: 65520 and above is infinite");
    CHECK(f16_from_f32(0x1p-25f) == 0 && f16_from_f32(nextafterf(0x1p-25f, 1)) == 1 && f16_from_f32(-FLT_TRUE_MIN) == 0x8000, "f16: the smallest values");
}

static void test_bf16(void) {
    int wrong = 0, wrong_tie = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        const float x = bf16_to_f32((uint16_t)h);
        const uint16_t back = bf16_from_f32(x);
        wrong += bits_of(x) != h << 16;
        if (x != x) wrong += back != (h | 64); // quiet
        else wrong += back != h;
        if ((h & 0x7f80) == 0x7f80) continue;
        float tie, below, above;
        memcpy(&tie, &(uint32_t){h << 16 | 0x8000}, 4);
        memcpy(&below, &(uint32_t){h << 16 | 0x7fff}, 4);
        memcpy(&above, &(uint32_t){h << 16 | 0x8001}, 4);
        wrong_tie += bf16_from_f32(tie) != (h & 1 ? h + 1 : h) || bf16_from_f32(below) != h || bf16_from_f32(above) != h + 1;
    }
    CHECK(!wrong, "bf16: %d of 65536 values do not survive the way to f32 and back", wrong);
    CHECK(!wrong_tie, "bf16_from_f32: %d roundings between neighbours are wrong", wrong_tie);
    CHECK(bf16_from_f32(FLT_MAX) == 0x7f80, "bf16: the largest float rounds to infinity");
    float nan;
    memcpy(&nan, &(uint32_t){0x7f800001}, 4); // its upper half alone would be infinity
    CHECK(bf16_from_f32(nan) == 0x7fc0, "bf16: a NaN with a small payload stays one");
}

// ---- input that no model should hold ----

static const struct {
    const char *name;
    float value[3]; // repeated over the row
} ODD[] = {
    {"NaN", {NAN, NAN, NAN}},
    {"infinity", {INFINITY, INFINITY, INFINITY}},
    {"mixed infinities", {INFINITY, -INFINITY, 1}},
    {"one NaN in three", {1, NAN, -2}},
    {"the largest floats", {FLT_MAX, -FLT_MAX, FLT_MAX}},
    {"the smallest floats", {FLT_TRUE_MIN, -FLT_TRUE_MIN, FLT_MIN}},
    {"near the threshold of zero", {1e-15f, -0.9e-15f, 0}},
    {"beyond float16", {1e30f, -1, 1e-30f}},
    {"negative only", {-1, -2, -3}},
};

// Any code is well formed; what can be wrong is a scale that a reader must refuse, or a code that quantisers never make.
static bool well_formed(TensorType type, const uint8_t *block) {
    if (type == TYPE_MXFP4) return block[0] != 255;
    if (type == TYPE_Q8_0)
        for (int j = 0; j < 32; j++)
            if ((int8_t)block[2 + j] == -128) return false;
    return true;
}

static void test_odd_input(void) {
    for (int row = 0; row < N_ROW; row++) {
        const TensorType type = ROWS[row].type;
        const TypeInfo *t = type_info((int)type);
        const int64_t one = t->bytes;
        float x[3 * 256], back[3 * 256];
        uint8_t blocks[3 * 292], clean[3 * 292];
        const int n = 3 * t->block;

        for (size_t odd = 0; odd < sizeof ODD / sizeof *ODD; odd++)
            for (int importance = 0; importance < 4; importance++) { // none, ordinary, zero, NaN
                float w[3 * 256];
                for (int i = 0; i < n; i++) {
                    x[i] = i / t->block == 1 ? ODD[odd].value[i % 3] : X[i % 256];
                    w[i] = importance == 1 ? IMPORTANCE[i % 256] : importance == 2 ? 0 : NAN;
                }
                t->from_f32(x, blocks, n, importance ? w : NULL);
                t->to_f32(blocks, back, n);
                for (int b = 0; b < 3; b++) CHECK(well_formed(type, blocks + b * one), "%s of %s, importance %d: block %d is malformed", t->name, ODD[odd].name, importance, b);
                if (importance) continue; // where it is used, the whole row's mean square may be
                for (int i = t->block; i < 2 * t->block; i++) x[i] = 0;
                t->from_f32(x, clean, n, NULL);
                CHECK(!memcmp(clean, blocks, (size_t)one) && !memcmp(clean + 2 * one, blocks + 2 * one, (size_t)one), "%s: %s in one block change another", t->name, ODD[odd].name);
            }

        for (int importance = 0; importance < 2; importance++) {
            const float *w = importance ? IMPORTANCE : NULL;
            for (int i = 0; i < 256; i++) x[i] = 0;
            t->from_f32(x, blocks, 256, w);
            t->to_f32(blocks, back, 256);
            double largest = 0;
            for (int i = 0; i < 256; i++) largest = fmax(largest, fabs(back[i]));
            CHECK(largest == 0, "%s, importance %d: zeros become up to %g", t->name, importance, largest);

            for (int sign = -1; sign <= 1; sign += 2) { // 0.6: not on any grid. One step of a 2-bit format is a third.
                for (int i = 0; i < 256; i++) x[i] = (float)sign * 0.6f;
                t->from_f32(x, blocks, 256, w);
                t->to_f32(blocks, back, 256);
                const double allowed = type == TYPE_MXFP4 ? 0.11 : 0.02; // MXFP4 steps from 0.5 to 0.75 here
                double worst = 0;
                for (int i = 0; i < 256; i++) worst = fmax(worst, fabs((double)back[i] - x[i]));
                CHECK(worst < allowed, "%s, importance %d: a constant %g is off by %g", t->name, importance, (double)x[0], worst);
            }
        }
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    make_inputs();
    CHECK(crc32("123456789", 9) == 0xcbf43926, "the CRC itself");
    CHECK(fabs((double)X[0] - 0.1180339456) < 1e-9 && fabs((double)X[255] + 0.0708248466) < 1e-9 && fabs((double)A[1] + 0.6299339533) < 1e-9, "the inputs themselves");
    test_table();
    test_to_f32();
    test_from_f32();
    test_dots();
    test_f16();
    test_bf16();
    test_odd_input();
    return test_end();
}
