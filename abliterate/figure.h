// figure.h: charts and tables of an HTML page: text made safe, numbers for people, axes, bars, rows of dots, lines, as inline
// SVG. Knows nothing of what is shown. Colours come from CSS classes (hues) of the page.
#ifndef FIGURE_H
#define FIGURE_H

#include <math.h>

#include "stats.h"

// ---- text and numbers ----

enum { TEXT_SIZE = 640 };
void put_text(FILE *f, const char *s, int most); // escaped, at most so many characters
const char *short_text(char out[TEXT_SIZE], const char *s, int most);
const char *number(char out[32], double v);
const char *percent(char out[32], double v);
// The same in one expression: the text lives until the end of the block.
#define TEXT(s, most) short_text((char[TEXT_SIZE]){0}, s, most)
#define NUM(v) number((char[32]){0}, v)
#define PERCENT(v) percent((char[32]){0}, v)
static inline double share(int k, int n) { return n > 0 ? (double)k / n : NAN; }

// A table: the heading row, rows, the end. Cells are separated by TABs.
PRINTF_LIKE(3, 4) void table_row(FILE *f, bool head, const char *format, ...);
void table_end(FILE *f);

// ---- axes ----

typedef struct {
    double low, high;
} Range;
#define NO_RANGE ((Range){INFINITY, -INFINITY})
void range_add(Range *r, double v); // widens it to hold v

// Values low .. high lie at from .. to; log: low and high are powers of ten.
typedef struct {
    double low, high, step, from, to;
    bool log;
} Axis;
Axis axis_of(Range r, double from, double to, int most); // at most about so many steps
Axis log_axis_of(Range r, double from, double to);
double at(const Axis *a, double v);

// ---- figures ----

enum { WIDE = 430 }; // of a chart, in its own units

void svg_open(FILE *f, const char *caption, double width, double height, bool heat);
void svg_close(FILE *f);
PRINTF_LIKE(5, 6) void label(FILE *f, double x, double y, const char *class, const char *format, ...);
PRINTF_LIKE(7, 8) void dot(FILE *f, double x, double y, double radius, const char *kind, const char *hue, const char *title, ...);
void whisker(FILE *f, double from, double to, double y);
void x_axis(FILE *f, const Axis *a, double top, double bottom, const char *title, bool shares);
// What a chart's marks mean. line: of line charts.
void legend(FILE *f, const char *hue, bool with, bool line, const char *name);

// Two bars, without and with.
typedef struct {
    const char *group, *hue; // group: escaped
    int k[2], n[2];
    Interval within[2];
} Rate;
void rate_chart(FILE *f, const char *caption, const Rate *rate, int n);

// Rows of dots: open, dots at strip_y(row), svg_close.
enum { STRIP_LEFT = 124, STRIP_TOP = 4, STRIP_ROW = 30 };
static inline double strip_y(int row) { return STRIP_TOP + STRIP_ROW * (row + 0.5); }
static inline double jitter(int i) { return (i * 7 % 11 - 5) * 1.6; } // points that coincide stay apart
void strip_open(FILE *f, const char *caption, const char *const *name, int n, const Axis *x, const char *title);

typedef struct {
    const char *name, *hue;
    bool with;
    const double *y; // [n]
} Line;
typedef struct {
    const char *caption, *x_title, *y_title;
    const double *x;       // [n]
    int n, n_line;
    const Line *line;
    double mark;           // a vertical line there; NaN: none
    const char *mark_name;
} Chart;
void line_chart(FILE *f, const Chart *c);

#endif
