// picture.c: see picture.h
#include "picture.h"

#include <math.h>

#include "console.h"

void picture_print(FILE *out, const Picture *p) {
    static const char *const BLOCK[] = {" ", "\xE2\x96\x91", "\xE2\x96\x92", "\xE2\x96\x93", "\xE2\x96\x88"}; // U+2591 to U+2593, U+2588
    static const char ASCII[] = " .:-=+*#%@";
    const bool utf8 = is_utf8();
    int width = (int)strlen(p->column);
    for (int r = 0; r < p->n_row; r++) width = max_int(width, (int)strlen(p->row_name[r]));
    fprintf(out, "%*s ", width, p->column);
    for (int c = 0; c < p->n_col; c++) fprintf(out, "%3d", c);
    fputc('\n', out);
    for (int r = 0; r < p->n_row; r++) {
        fprintf(out, "%*s ", width, p->row_name[r]);
        for (int c = 0; c < p->n_col; c++) {
            const double v = (p->value[r * p->n_col + c] - p->low) / (p->high - p->low);
            const bool marked = r == p->mark_row && c == p->mark_col;
            const int level = isnan(v) ? 0 : (int)fmin(utf8 ? 4 : 9, fmax(0, floor(v * (utf8 ? 5 : 10))));
            const char ascii[2] = {ASCII[level], 0}, *cell = utf8 ? BLOCK[level] : ascii;
            fprintf(out, marked ? "[%s]" : " %s%s", cell, marked ? "" : cell);
        }
        fputc('\n', out);
    }
}
