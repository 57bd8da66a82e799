// peaks.c: see peaks.h
#include "peaks.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "console.h"
#include "fill.h"
#include "pool.h"

int threads_or_all(int threads) { return threads ? threads : processors_allowed(); }

// The same threads as those of the cpu backend: a pool, which gives each one stretch of memory.
static Pool *threads_of(int n) {
    static Pool *pool;
    static int n_thread;
    if (!pool || n_thread != n) {
        pool_close(pool);
        pool = pool_open(n_thread = n);
    }
    return pool;
}

static void run_threads(Work *work, const void *args, int n_item, int threads) {
    Pool *pool = threads_of(threads);
    if (pool) pool_run(pool, work, args, n_item);
    else
        for (int i = 0; i < n_item; i++) work(args, i, 0);
}

// ---- was there a processor for every thread? ----

static double all_wall, all_cpu; // seconds times threads

static double cpu_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double peaks_share_running(void) {
    const double share = all_wall > 0 ? all_cpu / all_wall : 1;
    all_wall = all_cpu = 0;
    return share < 1 ? share : 1;
}

// ---- reading ----

static volatile uint64_t sink; // keeps the reads and sums

// In four streams with prefetching, each with a sum of its own, in the widest registers there are. On the machines of RESULTS.md more
// streams or other distances are no faster, one plain stream up to a third slower, narrow registers a tenth. No kernel must look better.
#define READER(name, width, isa)                                                                   \
    isa static uint64_t name(const uint8_t *p, int64_t n) {                                        \
        typedef uint64_t Words __attribute__((vector_size(width)));                                \
        const int64_t quarter = n / 4 / 64 * 64;                                                   \
        Words sum[4] = {{0}}, words;                                                               \
        for (int64_t k = 0; k < quarter; k += 64)                                                  \
            for (int s = 0; s < 4; s++) {                                                          \
                __builtin_prefetch(p + s * quarter + k + 1024);                                    \
                for (int i = 0; i < 64; i += width) {                                              \
                    memcpy(&words, p + s * quarter + k + i, width);                                \
                    sum[s] += words;                                                               \
                }                                                                                  \
            }                                                                                      \
        sum[0] += sum[1] + sum[2] + sum[3];                                                        \
        return sum[0][0] + sum[0][1];                                                              \
    }
typedef uint64_t Reader(const uint8_t *p, int64_t n);
READER(read_16, 16, )
#if defined(__x86_64__)
READER(read_32, 32, __attribute__((target("avx2"))))
READER(read_64, 64, __attribute__((target("avx512f"))))
static Reader *reader(void) { return isa_works(ISA_AVX512VNNI) ? read_64 : isa_works(ISA_AVX2) ? read_32 : read_16; }
#else
static Reader *reader(void) { return read_16; }
#endif

typedef struct {
    Reader *sum; // chosen once: asking the processor what it can do takes long in a virtual machine
    const Piece *piece;
} Reading;

static void read_piece(const void *args, int i, int thread) {
    const Reading *r = args;
    (void)thread;
    sink = r->sum(r->piece[i].p, r->piece[i].n);
}

double stream_gbps(const Piece *piece, int n, int threads) {
    const Reading reading = {reader(), piece};
    const double start = seconds_now(), cpu = cpu_now();
    double spent, bytes = 0, times = 0;
    for (int i = 0; i < n; i++) bytes += (double)piece[i].n;
    do {
        run_threads(read_piece, &reading, n, threads);
        times++;
        spent = seconds_now() - start;
    } while (spent < 0.1);
    all_cpu += cpu_now() - cpu;
    all_wall += spent * threads;
    return bytes * times / spent * 1e-9;
}

double stream_gbps_of(const void *p, int64_t n, int threads) {
    enum { SIZE = 256 << 10 };
    static Piece piece[1 << 16];
    int n_piece = 0;
    for (int64_t at = 0; at < n && n_piece < (int)(sizeof piece / sizeof *piece); at += SIZE)
        piece[n_piece++] = (Piece){(const uint8_t *)p + at, n - at < SIZE ? n - at : SIZE};
    return stream_gbps(piece, n_piece, threads);
}

// ---- filling ----

double fill_gbps(const void *p, int64_t n, int64_t slot_bytes, int n_slot) {
    char *slots = aligned_alloc(4096, (size_t)(slot_bytes * n_slot));
    Pool *pool = fill_open();
    double start = 0, spent = 0, bytes = 0;
    if (slots && pool) memset(slots, 0, (size_t)(slot_bytes * n_slot));
    for (int64_t at = 0, i = 0; slots && pool && spent < 0.1; i++, at += slot_bytes) {
        if (at + slot_bytes > n) at = 0;
        if (i == n_slot) start = seconds_now(), bytes = 0; // the first round brings the slots to where they stay
        fill_slot(pool, slots + i % n_slot * slot_bytes, (const char *)p + at, (size_t)slot_bytes);
        bytes += (double)slot_bytes;
        if (i > n_slot) spent = seconds_now() - start;
    }
    pool_close(pool);
    free(slots);
    return spent > 0 ? bytes / spent * 1e-9 : 0;
}

// ---- multiplying ----

const char *const PEAK_NAMES[] = {"int8", "f32"};

PeakKind peak_kind(TensorType type) { return type == TYPE_F32 || type == TYPE_F16 || type == TYPE_BF16 ? PEAK_F32 : PEAK_INT8; }

typedef void Loop(int64_t rounds);

#if defined(__x86_64__)
// CHAINS sums that wait only for themselves, enough to fill the multipliers while each waits for its last addition. Variables, as an
// array would be kept in memory. The operand a may have changed, for all the compiler knows: it must multiply again.
#define DO8(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define DO12(X) DO8(X) X(8) X(9) X(10) X(11)
#define DO16(X) DO12(X) X(12) X(13) X(14) X(15)
#define SUM(i) sum##i = zero,
#define STEP(i) __asm__ volatile("" : "+v"(a)); sum##i = PRODUCT(sum##i);
#define WANTED(i) __asm__ volatile("" : : "v"(sum##i));
#define LOOP(name, isa, V, DO, ZERO, BITS)                              \
    __attribute__((target(isa))) static void name(int64_t rounds) {     \
        const V zero = ZERO, ones = BITS(0x00010001);                   \
        V DO(SUM) a = BITS(0x01010101), b = a;                          \
        for (; rounds; rounds--) { DO(STEP) }                           \
        DO(WANTED)                                                      \
        (void)ones, (void)b;                                            \
    }
static inline __attribute__((target("avx2"))) __m256 floats(int bits) { return _mm256_castsi256_ps(_mm256_set1_epi32(bits)); }
static inline __attribute__((target("avx512f"))) __m512 wide_floats(int bits) { return _mm512_castsi512_ps(_mm512_set1_epi32(bits)); }

#define PRODUCT(sum) _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones))
LOOP(int8_avx2, "avx2", __m256i, DO8, _mm256_setzero_si256(), _mm256_set1_epi32)
#undef PRODUCT
#define PRODUCT(sum) _mm256_fmadd_ps(a, b, sum)
LOOP(f32_avx2, "avx2,fma", __m256, DO12, _mm256_setzero_ps(), floats)
#undef PRODUCT
#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11
#define HAS_AVXVNNI
#define PRODUCT(sum) _mm256_dpbusd_avx_epi32(sum, a, b)
LOOP(int8_avxvnni, "avx2,avxvnni", __m256i, DO12, _mm256_setzero_si256(), _mm256_set1_epi32)
#undef PRODUCT
#endif
#define PRODUCT(sum) _mm512_dpbusd_epi32(sum, a, b)
LOOP(int8_avx512vnni, "avx512f,avx512vnni", __m512i, DO16, _mm512_setzero_si512(), _mm512_set1_epi32)
#undef PRODUCT
#define PRODUCT(sum) _mm512_fmadd_ps(a, b, sum)
LOOP(f32_avx512, "avx512f", __m512, DO16, _mm512_setzero_ps(), wide_floats)
#endif

static const struct {
    Loop *run;
    int per_round; // multiplications with their additions
} LOOPS[][2] = {
#if defined(__x86_64__)
    [ISA_AVX2] = {{int8_avx2, 8 * 32}, {f32_avx2, 12 * 8}},
#ifdef HAS_AVXVNNI
    [ISA_AVXVNNI] = {{int8_avxvnni, 12 * 32}, {f32_avx2, 12 * 8}},
#endif
    [ISA_AVX512VNNI] = {{int8_avx512vnni, 16 * 64}, {f32_avx512, 16 * 16}},
    [ISA_AMX] = {{NULL, 0}, {f32_avx512, 16 * 16}}, // int8: not known, a loop of tile products has run nowhere yet
#endif
    [ISA_PORTABLE] = {{NULL, 0}, {NULL, 0}},
};

typedef struct {
    Loop *run;
    double *rate; // [threads] rounds per second
} Peak;

static void multiply(const void *args, int item, int thread) {
    enum { ROUNDS = 10000 };
    const Peak *p = args;
    const double start = seconds_now();
    double spent, done = 0;
    (void)thread;
    do {
        p->run(ROUNDS);
        done += ROUNDS;
        spent = seconds_now() - start;
    } while (spent < 0.03);
    p->rate[item] = done / spent;
}

double peak_gflops(PeakKind kind, Isa isa, int threads) {
    if (isa == ISA_AUTO) isa = isa_best();
    double each[1024] = {0}, rate = 0; // -t allows as many
    if ((size_t)isa >= sizeof LOOPS / sizeof *LOOPS || !isa_works(isa) || !LOOPS[isa][kind].run || threads > 1024) return NAN;
    const double begin = seconds_now(), cpu = cpu_now();
    run_threads(multiply, &(Peak){LOOPS[isa][kind].run, each}, threads, threads);
    for (int i = 0; i < threads; i++) rate += each[i];
    all_cpu += cpu_now() - cpu;
    all_wall += (seconds_now() - begin) * threads;
    return 2 * LOOPS[isa][kind].per_round * rate * 1e-9;
}
