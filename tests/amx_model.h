// amx_model.h: the tiles of AMX in plain C, for a machine without them. Include it, and then the source that uses the intrinsics.
// Semantics and faults: Intel Software Developer's Manual, volume 2, LDTILECFG, TILELOADD, TILESTORED, TDPBSUD; volume 1, chapter 18.
// What a processor would refuse counts in amx_faults and does nothing.
#ifndef AMX_MODEL_H
#define AMX_MODEL_H

#include <immintrin.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static struct {
    bool configured;
    int n_row[8], row_bytes[8];
    uint8_t byte[8][16][64];
} amx;
static int amx_faults;

static inline bool amx_expect(bool right) {
    amx_faults += !right;
    return right;
}
static inline bool amx_usable(int t) { return amx_expect(amx.configured && t >= 0 && t < 8 && amx.n_row[t] > 0); }

static inline void amx_loadconfig(const void *config) {
    const uint8_t *c = config;
    bool right = c[0] == 1;
    memset(&amx, 0, sizeof amx);
    for (int i = 1; i < 64; i++)
        if (i < 16 || (i >= 32 && i < 48) || i >= 56) right &= c[i] == 0; // start_row and reserved bytes, tiles 8 to 15
    for (int t = 0; t < 8; t++) {
        amx.row_bytes[t] = c[16 + 2 * t] | c[17 + 2 * t] << 8;
        amx.n_row[t] = c[48 + t];
        right &= amx.row_bytes[t] <= 64 && amx.n_row[t] <= 16 && !amx.row_bytes[t] == !amx.n_row[t];
    }
    amx.configured = amx_expect(right);
}

static inline void amx_release(void) { memset(&amx, 0, sizeof amx); }

static inline void amx_zero(int t) {
    if (amx_usable(t)) memset(amx.byte[t], 0, sizeof amx.byte[t]);
}

static inline void amx_loadd(int t, const void *from, int64_t stride) {
    if (!amx_usable(t)) return;
    memset(amx.byte[t], 0, sizeof amx.byte[t]);
    for (int r = 0; r < amx.n_row[t]; r++) memcpy(amx.byte[t][r], (const char *)from + r * stride, (size_t)amx.row_bytes[t]);
}

static inline void amx_stored(int t, void *to, int64_t stride) {
    if (!amx_usable(t)) return;
    for (int r = 0; r < amx.n_row[t]; r++) memcpy((char *)to + r * stride, amx.byte[t][r], (size_t)amx.row_bytes[t]);
}

// to[m][n] (int32) += sum over k, i of signed a[m][4 k + i] * unsigned b[k][4 n + i]
static inline void amx_dpbsud(int to, int a, int b) {
    if (!amx_usable(to) || !amx_usable(a) || !amx_usable(b)) return;
    if (!amx_expect(to != a && to != b && a != b && amx.n_row[to] == amx.n_row[a] && amx.row_bytes[to] == amx.row_bytes[b] &&
                    amx.row_bytes[a] == 4 * amx.n_row[b] && amx.row_bytes[to] % 4 == 0)) return;
    for (int m = 0; m < amx.n_row[to]; m++)
        for (int n = 0; n < amx.row_bytes[to] / 4; n++) {
            int32_t sum;
            memcpy(&sum, amx.byte[to][m] + 4 * n, 4);
            for (int k = 0; k < amx.n_row[b]; k++)
                for (int i = 0; i < 4; i++) sum += (int8_t)amx.byte[a][m][4 * k + i] * amx.byte[b][k][4 * n + i];
            memcpy(amx.byte[to][m] + 4 * n, &sum, 4);
        }
}

#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbsud
#define _tile_loadconfig amx_loadconfig
#define _tile_release amx_release
#define _tile_zero amx_zero
#define _tile_loadd amx_loadd
#define _tile_stored amx_stored
#define _tile_dpbsud amx_dpbsud
#define __AMX_INT8__ 1

#endif
