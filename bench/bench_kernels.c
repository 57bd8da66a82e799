// bench_kernels.c: how fast does a matrix-vector product read its weights, compared with only reading them?
//   bench_kernels [-t threads] [-m MiB] [-n rounds] [-r rows] [-i isa] [type ...]
// Decoding one token reads every weight once; a kernel that keeps up with memory cannot be made faster. For each weight type
// and instruction set level the same buffer is (a) summed as 64-bit words, (b) multiplied with one row of activations, in
// turn, `rounds` times. Printed: medians of both in GB/s (1e9 bytes of weights), and the median of the ratios of neighbours.
// With -r above 1 (prefill) the figure of interest is the last column, 2 n_row n_col rows / time.
// The buffer must be larger than the last-level cache to mean main memory; this is the caller's choice (-m).
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "backend.h"
#include "stream.h"
#ifdef _OPENMP
#include <omp.h>
#endif

enum { N_COL = 4096, MAX_ROUNDS = 101, PATTERN_ROWS = 16 };

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_value);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

static volatile uint64_t sink; // keeps the reads

static void read_all(const void *p, int64_t bytes, int threads) {
    const int64_t piece = 1 << 20;
    uint64_t total = 0;
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : total)
    for (int64_t i = 0; i < bytes; i += piece) total += sum_bytes((const uint8_t *)p + i, bytes - i < piece ? bytes - i : piece);
    sink = total;
}

static float noise(uint32_t *state) { // uniform in [-1, 1)
    *state = *state * 1664525u + 1013904223u;
    return (float)(int32_t)*state * 0x1p-31f;
}

static void bench(const Tensor *w, Isa isa, int threads, int rounds, int n_rows, const float *x, float *y) {
    Backend b;
    Err e;
    const int64_t bytes = tensor_bytes(w);
    double read[MAX_ROUNDS], product[MAX_ROUNDS], ratio[MAX_ROUNDS];
    if (!backend_open_cpu(&b, threads, isa, &e) || !b.reserve(&b, &(Limits){.n_rows = n_rows, .n_col = N_COL, .n_ctx = 1, .head_dim = 1}, &e)) {
        fprintf(stderr, "%s\n", e.text);
        exit(1);
    }
    b.matmul(&b, y, w, NULL, x, n_rows); // warm up
    for (int i = 0; i < rounds; i++) {
        const double start = now();
        read_all(w->host, bytes, threads);
        const double middle = now();
        b.matmul(&b, y, w, NULL, x, n_rows);
        const double end = now();
        read[i] = (double)bytes / (middle - start) * 1e-9;
        product[i] = (double)bytes / (end - middle) * 1e-9;
        ratio[i] = product[i] / read[i];
    }
    const double gb = median(product, rounds), flop = 2.0 * w->n_row * w->n_col * n_rows / ((double)bytes / gb);
    printf("%-7s %-11s %8.2f %8.2f %8.2f %10.1f\n", type_info((int)w->type)->name, isa_name(isa), gb, median(read, rounds), median(ratio, rounds), flop);
    fflush(stdout);
    backend_close(&b);
}

int main(int argc, char **argv) {
    int threads = 0, rounds = 7, n_rows = 1, only_isa = ISA_AUTO, n_type = 0;
    int64_t mib = 1024;
    int types[TYPE_COUNT];
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "-t")) threads = atoi(value), i++;
        else if (!strcmp(argv[i], "-m")) mib = atoi(value), i++;
        else if (!strcmp(argv[i], "-n")) rounds = atoi(value), i++;
        else if (!strcmp(argv[i], "-r")) n_rows = atoi(value), i++;
        else if (!strcmp(argv[i], "-i")) only_isa = isa_by_name(value), i++;
        else if (type_by_name(argv[i]) >= 0 && type_info(type_by_name(argv[i]))->from_f32 && n_type < TYPE_COUNT) types[n_type++] = type_by_name(argv[i]);
        else {
            fprintf(stderr, "usage: bench_kernels [-t threads] [-m MiB] [-n rounds] [-r rows] [-i isa] [type ...]\n");
            return 2;
        }
    }
#ifdef _OPENMP
    if (threads <= 0) threads = omp_get_num_procs();
#else
    threads = 1;
#endif
    if (rounds < 1 || rounds > MAX_ROUNDS || n_rows < 1 || mib < 1 || only_isa < 0) {
        fprintf(stderr, "expected 1 to %d rounds, at least 1 row and 1 MiB, a known instruction set level\n", MAX_ROUNDS);
        return 2;
    }
    if (n_type == 0) // none is named: all
        for (int t = 0; t < TYPE_COUNT; t++)
            if (type_info(t) && type_info(t)->from_f32) types[n_type++] = t;

    const size_t bytes = (size_t)mib << 20;
    char *buffer = aligned_alloc(64, bytes);
    float *x = malloc(sizeof(float) * N_COL * (size_t)(n_rows > PATTERN_ROWS ? n_rows : PATTERN_ROWS));
    float *y = malloc(sizeof(float) * (bytes / (N_COL / 4)) * (size_t)n_rows);
    if (!buffer || !x || !y) {
        fprintf(stderr, "no memory for %lld MiB of weights\n", (long long)mib);
        return 1;
    }
    uint32_t state = 1;
    for (size_t i = 0; i < N_COL * (size_t)(n_rows > PATTERN_ROWS ? n_rows : PATTERN_ROWS); i++) x[i] = noise(&state);
    printf("%d threads, %lld MiB of weights with %d columns, %d row%s of activations, median of %d\n", threads, (long long)mib, N_COL, n_rows,
           n_rows == 1 ? "" : "s", rounds);
    printf("%-7s %-11s %8s %8s %8s %10s\n", "type", "level", "GB/s", "read", "ratio", "GFLOP/s");
    for (int i = 0; i < n_type; i++) {
        const int64_t row = type_row_bytes((TensorType)types[i], N_COL);
        const int n_row = (int)((int64_t)bytes / row);
        for (int r = 0; r < PATTERN_ROWS && r < n_row; r++)
            type_info(types[i])->from_f32(x + (size_t)r * N_COL, buffer + r * row, N_COL, NULL);
        for (int r = PATTERN_ROWS; r < n_row; r++) memcpy(buffer + r * row, buffer + (r - PATTERN_ROWS) * row, (size_t)row);
        const Tensor w = {.name = "bench", .type = (TensorType)types[i], .n_row = n_row, .n_col = N_COL, .n_slice = 1, .host = buffer};
        for (int isa = ISA_PORTABLE; isa <= ISA_AVX512VNNI; isa++)
            if (isa_works((Isa)isa) && (only_isa == ISA_AUTO || only_isa == isa)) bench(&w, (Isa)isa, threads, rounds, n_rows, x, y);
    }
    free(buffer);
    free(x);
    free(y);
    return 0;
}
