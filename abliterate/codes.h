// codes.h: stored weights as numbered points of a line, so that one can be moved to its neighbour: the codes of a block apart
// from its scales. The meaning of each format is quant.c's.
//
//   value = scale * point(code) + offset      point: code - zero, or the format's table in ascending order
//   F16 and BF16: codes number the finite values in ascending order, scale 1, offset 0
#ifndef CODES_H
#define CODES_H

#include "quant.h"

// Elements that share a scale and an offset: 16 or 32, for F16 and BF16 as well. 0: this type has no codes to move (F32).
int codes_group(TensorType type);

// n elements, a multiple of the type's block, out of and into blocks. scale, offset: [n / group, rounded up].
void codes_get(TensorType type, const void *blocks, int n, uint16_t *codes, float *scale, float *offset);
void codes_set(TensorType type, void *blocks, int n, const uint16_t *codes); // the scales stay

// codes[i] becomes that of the point nearest to x[i]; stays where there is none: x, scale or offset not finite, or scale 0.
void codes_nearest(TensorType type, const float *x, int n, float scale, float offset, uint16_t *codes);
// The values, and how far the next higher and the next lower value lie (>= 0; 0: there is none), of n elements of one group.
void codes_values(TensorType type, const uint16_t *codes, int n, float scale, float offset, float *value, float *above, float *below);
// Moves a code to the next higher (by 1) or lower (-1) value.
uint16_t codes_move(uint16_t code, float scale, int by);

#endif
