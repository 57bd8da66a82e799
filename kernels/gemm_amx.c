// gemm_amx.c: products for many rows of x with the int8 tiles of AMX (Intel Sapphire Rapids 2023). Formula, layouts and unpacking are
// those of gemm_avx512vnni.c, and so are the results, bit for bit; rows of x beyond a multiple of 16, and float weights, go there.
// Instructions: Intel Software Developer's Manual, volume 2 (LDTILECFG, TILELOADD, TDPBSUD); volume 1, chapter 18.
//
// Of a block of 32 columns one tile product makes the integer sums of 16 rows of x with 16 rows of W: x [16][32] signed codes times
// code[8][16][4] of GemmW, which is the layout that the instruction wants of its right factor. A scale ends after 32 columns, or after
// 16, so that a product fills a half or a quarter of a tile's 64 columns. The sums pass through memory (1 KiB, L1); there 2 or, with
// minima, 3 multiplications and an addition are left for each vector, of the 10 or 11 instructions without tiles.
//
// The tiles are configured when a product begins and released when it ends: a thread holds none in between.
// Never run on such a processor: checked against a model of the tiles in tests/test_amx.c. So only --isa amx chooses it.
#include <assert.h>
#include "dot.h"
#include "gemm.h"

// gcc and newer clang have the one name, older clang the other.
#if (defined(__AMX_INT8__) || defined(__AMXINT8__)) && defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "gemm_512.h"
#include "gemm_form.h"

enum {
    TILE_X = 16,                                                                  // rows of x in a tile
    MOST_BLOCKS = GEMM_TILE_BYTES / (GEMM_TILE_ROWS / LANES * (int)sizeof(GemmW)) // of 32 columns; see tile_cols
};

// Tile registers: the compilers want literals.
#define SUMS 0
#define CODES_X 1
#define CODES_W 2

typedef struct { // what LDTILECFG reads
    uint8_t palette, start_row, zero[14];
    uint16_t row_bytes[16];
    uint8_t n_row[16];
} TileConfig;
_Static_assert(sizeof(TileConfig) == 64, "LDTILECFG reads 64 bytes");

static const TileConfig CONFIG[2] = { // for scales per 32 columns, per 16
    {.palette = 1, .row_bytes = {64, 32, 64}, .n_row = {TILE_X, TILE_X, 8}},
    {.palette = 1, .row_bytes = {64, 16, 64}, .n_row = {TILE_X, TILE_X, 4}},
};

// x [n_block][TILE_X] with LANES rows of W, of which `lanes` exist
INLINE void product_tile(float *y, int64_t y_stride, const __mmask16 lanes, const GemmW *w, const GemmX *x, int n_block, const bool add,
                         const bool halves, const bool by_16, const bool affine) { // scales per 16: of x, of the weights
    V acc[TILE_X];
    for (int r = 0; r < TILE_X; r++) acc[r] = v_zero();
    for (int b = 0; b < n_block; b++, w++, x += TILE_X)
        for (int part = 0; part < (halves ? 2 : 1); part++) {
            int32_t sum[TILE_X][LANES] __attribute__((aligned(64)));
            _tile_zero(SUMS);
            _tile_loadd(CODES_X, x->q + 16 * part, sizeof(GemmX));
            _tile_loadd(CODES_W, w->code[4 * part], sizeof w->code[0]);
            _tile_dpbsud(SUMS, CODES_X, CODES_W);
            _tile_stored(SUMS, sum, sizeof sum[0]);
            const V scale = v_load(w->scale[by_16 ? part : 0]), min = affine ? v_load(w->min[by_16 ? part : 0]) : v_zero();
#pragma GCC unroll 16
            for (int r = 0; r < TILE_X; r++) {
                const VI bits = _mm512_add_epi32(vi_load(sum[r]), vi_set(x[r].start[part]));
                acc[r] = v_madd(v_madd(v_bits(bits), v_set(x[r].d[part]), v_set(x[r].undo[part])), scale, acc[r]);
                if (affine) acc[r] = v_madd(min, v_set(x[r].sum[part]), acc[r]);
            }
        }
    for (int r = 0; r < TILE_X; r++, y += y_stride)
        _mm512_mask_storeu_ps(y, lanes, add ? v_add(_mm512_maskz_loadu_ps(lanes, y), acc[r]) : acc[r]);
}

static void product_amx(const GemmTile *t) {
    GemmX x[MOST_BLOCKS][TILE_X] __attribute__((aligned(64)));
    const Form form = FORM[t->type];
    const bool halves = form.by_16 || t->fine;
    const int n_block = t->n_col / 32, n_tiled = type_wants_act8(t->type) ? t->n_x / TILE_X * TILE_X : 0;
    if (n_tiled) _tile_loadconfig(&CONFIG[halves]);
    for (int first = 0; first < n_tiled; first += TILE_X) {
        assert(n_block <= MOST_BLOCKS);
        for (int r = 0; r < TILE_X; r++)
            for (int b = 0; b < n_block; b++) x[b][r] = ((const GemmX *)t->x[first + r])[t->first / 32 + b];
        __asm__ volatile("" ::: "memory"); // gcc does not know that _tile_loadd reads x
        for (int o = 0; o < t->n_w; o += LANES) {
            float *y = t->y + first * t->y_stride + o;
            const __mmask16 lanes = (__mmask16)((1u << min_int(LANES, t->n_w - o)) - 1);
            const GemmW *w = (const GemmW *)t->tile + (int64_t)(o / LANES) * n_block;
#define PRODUCT(halves, by_16, affine) product_tile(y, t->y_stride, lanes, w, x[0], n_block, t->add, halves, by_16, affine)
            if (form.by_16 && form.affine) PRODUCT(true, true, true);
            else if (form.by_16) PRODUCT(true, true, false);
            else if (form.affine && t->fine) PRODUCT(true, false, true);
            else if (form.affine) PRODUCT(false, false, true);
            else if (t->fine) PRODUCT(true, false, false);
            else PRODUCT(false, false, false);
#undef PRODUCT
        }
    }
    if (n_tiled) _tile_release();
    GemmTile rest = *t;
    rest.y += n_tiled * t->y_stride;
    rest.x += n_tiled;
    rest.n_x -= n_tiled;
    GEMM_AVX512VNNI->product(&rest);
}

static void pack(void *x, float *lost, const float *row, int n_col, TensorType type, bool fine) { GEMM_AVX512VNNI->pack(x, lost, row, n_col, type, fine); }
static void unpack(void *tile, const char *w, int64_t w_stride, TensorType type, int n_w, int n_col) { GEMM_AVX512VNNI->unpack(tile, w, w_stride, type, n_w, n_col); }
static void unpack_keys(void *tile, const KeySpan *k) { GEMM_AVX512VNNI->unpack_keys(tile, k); }
static void unpack_values(void *tile, const KeySpan *v) { GEMM_AVX512VNNI->unpack_values(tile, v); }
static int tile_cols(TensorType type) { return GEMM_AVX512VNNI->tile_cols(type); }
static const GemmTable TABLE = {.pack = pack, .unpack = unpack, .product = product_amx, .tile_cols = tile_cols, .unpack_keys = unpack_keys,
                                .unpack_values = unpack_values};
const GemmTable *const GEMM_AMX = &TABLE;
#else
const GemmTable *const GEMM_AMX = NULL;
#endif
