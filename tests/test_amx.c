// test_amx.c: gemm_amx.c, compiled once more with a model of the tiles, gives the bits of gemm_avx512vnni.c: every weight type, every
// number of rows of x and of W around those of a tile, whole tiles and parts of them.
// Where the processor has AMX, test_ops runs the real one.
#include <stdbool.h>
#include "test.h"
#if defined(__AVX512VNNI__) // x86-64: the Makefile
#include "amx_model.h"
#define GEMM_AMX GEMM_AMX_MODEL
#include "gemm_amx.c"
#undef GEMM_AMX
#include "backend.h"
#include "random.h"

enum { MOST_X_ROWS = 37, COLS = 4096, Y_STRIDE = GEMM_TILE_ROWS + 3, N_Y = MOST_X_ROWS * Y_STRIDE };

static char *weights, *tile, *packed;
static float *rows;

// Columns [first, first + n_col) of n_w rows of W and n_x of x
static void check_product(TensorType type, int n_w, int n_x, int first, int n_col, bool add, bool fine) {
    const GemmTable *const table[] = {GEMM_AVX512VNNI, GEMM_AMX_MODEL};
    const int64_t w_stride = type_row_bytes(type, COLS);
    const void *x[MOST_X_ROWS];
    float y[2][N_Y];
    for (int r = 0; r < n_x; r++) {
        char *to = packed + (n_x - 1 - r) * gemm_x_bytes(COLS); // rows that are not in the order of their addresses, as those of experts
        x[r] = type_wants_act8(type) ? (const void *)to : rows + r * COLS;
        if (type_wants_act8(type)) GEMM_AVX512VNNI->pack(to, NULL, rows + r * COLS, COLS, type, fine);
    }
    for (int i = 0; i < N_Y; i++) y[0][i] = y[1][i] = gauss();
    for (int k = 0; k < 2; k++) {
        table[k]->unpack(tile, weights + type_row_bytes(type, first), w_stride, type, n_w, n_col);
        table[k]->product(&(GemmTile){.y = y[k], .y_stride = Y_STRIDE, .tile = tile, .type = type, .n_w = n_w, .x = x, .n_x = n_x, .first = first,
                                      .n_col = n_col, .add = add, .fine = fine});
    }
    const float *last = y[0] + (n_x - 1) * Y_STRIDE + n_w - 1;
    CHECK(isfinite(*last) && *last != 0, "%s: output %g is not interesting", type_info((int)type)->name, (double)*last);
    CHECK(!memcmp(y[0], y[1], sizeof y[0]), "%s: %d rows of W, %d of x, columns %d + %d, add %d, fine %d: differs from avx512vnni",
          type_info((int)type)->name, n_w, n_x, first, n_col, add, fine);
    CHECK(!amx.configured, "%s: the tiles are not released", type_info((int)type)->name);
}

// Apart from main, which must run on any machine.
static __attribute__((noinline)) void test_products(void) {
    static const struct { int n_w, n_x, first, n_col; } SHAPES[] = {
        {64, 16, 0, 512}, {64, 37, 512, 2048}, {32, 32, 256, 256}, {13, 17, 0, 512}, {61, 33, 0, 256}, {48, 15, 0, 256}, {1, 16, 256, 256},
    };
    weights = malloc((size_t)(GEMM_TILE_ROWS * type_row_bytes(TYPE_F32, COLS)));
    tile = aligned_alloc(64, GEMM_TILE_BYTES);
    packed = aligned_alloc(64, (size_t)(MOST_X_ROWS * gemm_x_bytes(COLS)));
    rows = malloc(sizeof(float) * MOST_X_ROWS * COLS);
    for (int i = 0; i < MOST_X_ROWS * COLS; i++) rows[i] = gauss();
    for (int k = 0; k < N_TYPE; k++) {
        const TensorType type = TYPES[k].type;
        random_blocks(weights, type, GEMM_TILE_ROWS * type_row_bytes(type, COLS));
        for (int s = 0; s < (int)(sizeof SHAPES / sizeof *SHAPES); s++) {
            const int n_col = min_int(SHAPES[s].n_col, GEMM_AVX512VNNI->tile_cols(type));
            for (int how = 0; how < 4; how++) check_product(type, SHAPES[s].n_w, SHAPES[s].n_x, SHAPES[s].first, n_col, how & 1, how & 2);
        }
    }
    CHECK(amx_faults == 0, "a processor would refuse %d instructions", amx_faults);
    free(weights);
    free(tile);
    free(packed);
    free(rows);
}

static bool can_run(void) { return isa_works(ISA_AVX512VNNI); }
#else
static bool can_run(void) { return false; }
static void test_products(void) {}
#endif

int main(int argc, char **argv) {
    test_begin(argc, argv);
    if (can_run()) test_products();
    else test_skip("avx512vnni: not on this machine");
    return test_end();
}
