// cpu.c: the CPU backend: SIMD and threads. Opens it, keeps its scratch memory, chooses the instruction set level.
// Each op is in its <op>_cpu.c; the inner loops are in dot_*.c (weights and a few rows), gemm_*.c (and many)
// and vec_*.c (everything else), one file per level.
#include "cpu.h"

#include "host.h"
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <errno.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

// -- instruction set levels -----------------------------------------------------------------------------------------------

static const struct {
    const char *name;
    const DotTable *const *dot;
    const VecTable *const *vec;
    const GemmTable *const *gemm;
} LEVELS[] = {
    [ISA_AUTO] = {"auto", NULL, NULL, NULL},
    [ISA_PORTABLE] = {"portable", &DOT_PORTABLE, &VEC_PORTABLE, NULL},
    [ISA_AVX2] = {"avx2", &DOT_AVX2, &VEC_AVX2, &GEMM_AVX2},
    [ISA_AVXVNNI] = {"avxvnni", &DOT_AVXVNNI, &VEC_AVX2, &GEMM_AVXVNNI},
    [ISA_AVX512VNNI] = {"avx512vnni", &DOT_AVX512VNNI, &VEC_AVX512, &GEMM_AVX512VNNI},
    [ISA_AMX] = {"amx", &DOT_AVX512VNNI, &VEC_AVX512, &GEMM_AMX},
};
enum { N_LEVEL = sizeof LEVELS / sizeof *LEVELS };

int isa_by_name(const char *name) {
    for (int i = 0; i < N_LEVEL; i++)
        if (!strcmp(LEVELS[i].name, name)) return i;
    return -1;
}

const char *isa_name(Isa isa) { return (unsigned)isa < N_LEVEL ? LEVELS[isa].name : "unknown"; }

#if defined(__x86_64__)
#if defined(__linux__)
// A product by tiles is what it is without them.
static bool tiles_multiply(void) {
    enum { N = 16, COLS = 32 };
    BlockQ8_0 w[N];
    GemmX x[N];
    const void *row[N];
    float y[N][N], want[N][N];
    char tile[GEMM_TILE_BYTES] __attribute__((aligned(64)));
    for (int r = 0; r < N; r++) {
        float values[COLS];
        w[r].d = f16_from_f32(0.5f);
        for (int k = 0; k < COLS; k++) {
            w[r].qs[k] = (int8_t)(37 * r + 11 * k);
            values[k] = (float)((7 * r + 5 * k) % 32 - 13);
        }
        GEMM_AMX->pack(&x[r], NULL, values, COLS, TYPE_Q8_0, false);
        row[r] = &x[r];
    }
    GEMM_AMX->unpack(tile, (const char *)w, sizeof *w, TYPE_Q8_0, N, COLS);
    GemmTile t = {.y = y[0], .y_stride = N, .tile = tile, .type = TYPE_Q8_0, .n_w = N, .x = row, .n_x = N, .n_col = COLS};
    GEMM_AMX->product(&t);
    t.y = want[0];
    GEMM_AVX512VNNI->product(&t);
    return !memcmp(y, want, sizeof y);
}

static void leave_child(int number) {
    (void)number;
    _exit(1);
}

// What processor and system announce is not enough: a process asks for the tile registers (Linux, Documentation/arch/x86/xstate.rst), and
// some virtual machines announce them and fault. So a child tries.
static bool tiles_work(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    if (syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)) return false;
    const pid_t child = fork();
    if (child == 0) {
        signal(SIGILL, leave_child);
        signal(SIGSEGV, leave_child);
        signal(SIGBUS, leave_child);
        _exit(tiles_multiply() ? 0 : 1);
    }
    int status = -1;
    while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    return child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
#else
static bool tiles_work(void) { return false; }
#endif

// CPUID says what the processor can do; XCR0, read by XGETBV, says which registers the operating system saves.
// Bit numbers: Intel Software Developer's Manual, volume 2A, CPUID; volume 1, 13.3 for XCR0.
static bool cpu_has(Isa isa) {
    unsigned a, b, c, d, b7, c7, d7, a71 = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
    const unsigned leaf1 = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29; // FMA, OSXSAVE, AVX, F16C
    if ((c & leaf1) != leaf1) return false;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return false;
    if (a >= 1) __get_cpuid_count(7, 1, &a71, &b, &c, &d);
    if ((low & 0x06) != 0x06 || !(b7 >> 5 & 1)) return false; // xmm and ymm saved; AVX2
    if (isa == ISA_AVX2) return true;
    if (isa == ISA_AVXVNNI) return a71 >> 4 & 1;
    const unsigned leaf7b = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; // AVX-512 F, DQ, BW, VL
    if ((low & 0xe6) != 0xe6 || (b7 & leaf7b) != leaf7b || !(c7 >> 11 & 1)) return false; // mask and zmm registers saved; VNNI
    if (isa == ISA_AVX512VNNI) return true;
    if ((low >> 17 & 3) != 3 || (d7 >> 24 & 3) != 3) return false; // tiles and their configuration saved; AMX-TILE, AMX-INT8
    if (!__get_cpuid_count(0x1d, 1, &a, &b, &c, &d)) return false; // palette 1: 8 tiles of 16 rows of 64 bytes
    return a >> 16 == 1024 && b == (8u << 16 | 64) && (c & 0xffff) == 16 && tiles_work();
}
#else
static bool cpu_has(Isa isa) {
    (void)isa;
    return false;
}
#endif

bool isa_works(Isa isa) {
    if (isa == ISA_AUTO || isa == ISA_PORTABLE) return true;
    return (unsigned)isa < N_LEVEL && *LEVELS[isa].dot && *LEVELS[isa].vec && *LEVELS[isa].gemm && cpu_has(isa);
}

Isa isa_best(void) {
    for (int isa = ISA_AVX512VNNI; isa > ISA_PORTABLE; isa--)
        if (isa_works((Isa)isa)) return (Isa)isa;
    return ISA_PORTABLE;
}

// -- memory ---------------------------------------------------------------------------------------------------------------

// Zeroed, at the start of a cache line. NULL when there is no memory.
static void *alloc_lines(size_t count, size_t element) {
    uint64_t bytes;
    if (!size_mul(count ? count : 1, element, &bytes) || !size_add(bytes, LINE - 1, &bytes)) return NULL;
    bytes = bytes / LINE * LINE;
    void *p = aligned_alloc(LINE, bytes);
    if (p) memset(p, 0, bytes);
    return p;
}

static void free_scratch(Cpu *c) {
    void *all[] = {c->act8, c->gemm_x, (void *)c->gemm_row, c->gemm_tile, c->many, c->hidden_up, c->hidden_gemm_x, c->lost, c->rotation, c->part, (void *)c->blocks_left, c->hidden, c->hidden_act8, c->slot_pair, c->first_slot, c->active};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    *c = (Cpu){.isa = c->isa, .n_thread = c->n_thread, .pool = c->pool, .dot = c->dot, .vec = c->vec, .gemm = c->gemm};
}

static bool reserve(Backend *b, const Limits *l, Err *e) {
    Cpu *c = cpu_of(b);
    free_scratch(c);
    c->limits = *l;
    c->part_stride = (l->head_dim + 2 + 15) / 16 * 16;
    c->n_part = (int64_t)l->n_head * (l->n_ctx / KEY_BLOCK + 2);
    const size_t threads = (size_t)c->n_thread, rows = (size_t)l->n_rows, slots = rows * (size_t)l->n_expert_used;
    const int n_col = max_int(l->n_col, l->n_embd);
    c->limits.n_col = n_col;
    c->act8 = alloc_lines(2 * rows, (size_t)act8_bytes(n_col));
    c->gemm_x = alloc_lines(2 * rows, (size_t)gemm_x_bytes(n_col));
    c->gemm_row = alloc_lines(2 * rows > slots ? 2 * rows : slots, sizeof *c->gemm_row);
    c->gemm_tile = alloc_lines(threads, GEMM_TILE_BYTES);
    c->many = alloc_lines(threads * (MANY_SCORES + MANY_SUMS), sizeof(float));
    c->lost = alloc_lines(threads * (size_t)n_col, sizeof(float));
    c->rotation = alloc_lines(threads * 2 * (size_t)l->head_dim, sizeof(double));
    c->part = alloc_lines((size_t)c->n_part, sizeof(float) * (size_t)c->part_stride);
    c->blocks_left = alloc_lines((size_t)c->n_part, sizeof *c->blocks_left);
    c->hidden = alloc_lines(slots * (size_t)l->n_ff_expert, sizeof(float));
    c->hidden_up = alloc_lines(slots * (size_t)l->n_ff_expert, sizeof(float));
    c->hidden_gemm_x = alloc_lines(slots, (size_t)gemm_x_bytes(l->n_ff_expert));
    c->hidden_act8 = alloc_lines(slots, (size_t)act8_bytes(l->n_ff_expert));
    c->slot_pair = alloc_lines(slots, sizeof(int));
    c->first_slot = alloc_lines((size_t)l->n_expert + 1, sizeof(int));
    c->active = alloc_lines((size_t)l->n_expert, sizeof(int));
    if (c->act8 && c->gemm_x && c->gemm_row && c->gemm_tile && c->many && c->hidden_up && c->hidden_gemm_x && c->lost && c->rotation && c->part && c->blocks_left && c->hidden && c->hidden_act8 && c->slot_pair && c->first_slot && c->active) return true;
    free_scratch(c);
    return err_set(e, "cpu backend: no memory for scratch (%d rows of %d, context %d)", l->n_rows, n_col, l->n_ctx);
}

static void *alloc_host(Backend *b, size_t bytes) {
    void *p = alloc_lines(bytes, 1);
    if (!p) backend_fail(b, "cpu backend: no memory for %zu bytes", bytes);
    return p;
}

static void wake_cpu(Backend *b) { pool_wake(cpu_of(b)->pool); }

// -- open and close -------------------------------------------------------------------------------------------------------

static void close_cpu(Backend *b) {
    if (b->priv) {
        pool_close(cpu_of(b)->pool);
        free_scratch(b->priv);
    }
    free(b->priv);
    memset(b, 0, sizeof *b);
}

bool backend_open_cpu(Backend *b, int threads, Isa isa, Err *e) {
    *b = (Backend){
        .name = "cpu", .kv_type = TYPE_F16, .on_host = true,
        .reserve = reserve, .alloc = alloc_host, .free = free_host, .upload = copy_host, .download = copy_host,
        .sync = sync_host, .wake = wake_cpu, .close = close_cpu,
        .embed = embed_cpu, .norm = norm_cpu, .matmul = matmul_cpu, .matmuls = matmuls_cpu, .rope = rope_cpu, .kv_write = kv_write_cpu, .kv_copy = kv_copy_cpu,
        .attention = attention_cpu, .gated = gated_cpu, .gated_matmul = gated_matmul_cpu, .moe_route = moe_route_cpu, .moe_ffn = moe_ffn_cpu, .add = add_cpu,
        .scale = scale_cpu, .softcap = softcap_cpu, .project_out = project_out_cpu, .add_dir = add_dir_cpu, .copy_rows = copy_rows_cpu,
        .top = top_cpu, .mul_cols = mul_cols_cpu, .mix_streams = mix_streams_cpu, .match_length = match_length_cpu, .sparsify = sparsify_cpu,
    };
    if (isa == ISA_AUTO) isa = isa_best();
    if (!isa_works(isa)) return err_set(e, "cpu backend: this machine or this build has no %s; the best here is %s", isa_name(isa), isa_name(isa_best()));
    if (threads <= 0) threads = processors_allowed();
    Pool *pool = pool_open(threads);
    if (!pool) return err_set(e, "cpu backend: the system does not grant %d threads", threads);
    Cpu *c = calloc(1, sizeof *c);
    if (!c) {
        pool_close(pool);
        return err_set(e, "cpu backend: no memory");
    }
    *c = (Cpu){.isa = isa, .n_thread = threads, .pool = pool, .dot = *LEVELS[isa].dot, .vec = *LEVELS[isa].vec,
                .gemm = LEVELS[isa].gemm ? *LEVELS[isa].gemm : NULL};
    b->priv = c;
    snprintf(b->detail, sizeof b->detail, "%s, %d thread%s", isa_name(isa), threads, threads == 1 ? "" : "s");
    return true;
}
