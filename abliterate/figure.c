// figure.c: see figure.h
#include "figure.h"

#include <stdlib.h>

#include "unicode.h"

static const char *const WITH_NAME[2] = {"without", "with"};

// ---- text and numbers ----

// The next character, as HTML; what is not UTF-8 or forbidden in HTML becomes U+FFFD.
static const char *next_char(const char **s, char out[8]) {
    uint32_t c;
    *s += utf8_decode(*s, strlen(*s), &c);
    const bool control = (c < ' ' && c != '\n' && c != '\t') || (c >= 0x7F && c < 0xA0);
    const bool none = (c >= 0xD800 && c < 0xE000) || (c >= 0xFDD0 && c < 0xFDF0) || (c & 0xFFFE) == 0xFFFE || c > 0x10FFFF;
    if (c == '&') return "&amp;";
    if (c == '<') return "&lt;";
    if (c == '>') return "&gt;";
    if (c == '"') return "&quot;";
    out[utf8_encode(control || none ? 0xFFFD : c, out)] = 0;
    return out;
}

void put_text(FILE *f, const char *s, int most) {
    char c[8];
    for (; *s && most > 0; most--) fputs(next_char(&s, c), f);
    if (*s) fprintf(f, " &hellip; <i>(%zu bytes more)</i>", strlen(s));
}

// On one line; at most 100 characters, of up to 6 bytes.
const char *short_text(char out[TEXT_SIZE], const char *s, int most) {
    char c[8];
    size_t n = 0;
    for (; *s && most > 0; most--) {
        const char *next = *s == '\n' || *s == '\t' ? (s++, " ") : next_char(&s, c);
        n += (size_t)snprintf(out + n, TEXT_SIZE - n, "%s", next);
    }
    if (*s) snprintf(out + n, TEXT_SIZE - n, "&hellip;");
    return out;
}

const char *number(char out[32], double v) {
    if (isnan(v)) return "&ndash;";
    if (isinf(v)) return v > 0 ? "&infin;" : "&minus;&infin;";
    const double a = fabs(v);
    snprintf(out, 32, a >= 1000 && a < 1e6 ? "%s%.0f" : "%s%.3g", v < 0 ? "&minus;" : "", a);
    return out;
}

const char *percent(char out[32], double v) {
    if (!isfinite(v)) return "&ndash;";
    const double p = 100 * v;
    snprintf(out, 32, (p > 0 && p < 1) || (p > 99 && p < 100) ? "%.1f&nbsp;%%" : "%.0f&nbsp;%%", p);
    return out;
}

// Cells are separated by TABs.
void table_row(FILE *f, bool head, const char *format, ...) {
    char text[4096], *rest = text, *cell;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fputs(head ? "<div class=\"scroll\"><table><thead><tr>" : "<tr>", f);
    for (int i = 0; (cell = strsep(&rest, "\t")); i++) fprintf(f, head || !i ? "<th>%s</th>" : "<td>%s</td>", cell);
    fputs(head ? "</tr></thead><tbody>\n" : "</tr>\n", f);
}
void table_end(FILE *f) { fputs("</tbody></table></div>\n", f); }

// ---- axes ----

void range_add(Range *r, double v) {
    if (!isfinite(v)) return;
    r->low = fmin(r->low, v);
    r->high = fmax(r->high, v);
}

enum { LOWEST_DECADE = -7 }; // what is less is drawn there: 0 has no logarithm

double at(const Axis *a, double v) {
    if (!isfinite(v)) return v;
    if (a->log) v = v > 0 ? fmax(log10(v), a->low) : a->low;
    return a->from + (a->to - a->from) * (v - a->low) / (a->high - a->low);
}

// Widened to whole steps of 1, 2 or 5 times a power of ten, about `most` of them.
Axis axis_of(Range r, double from, double to, int most) {
    if (!(r.low <= r.high)) r = (Range){0, 1};
    if (r.high - r.low < 1e-9 * fmax(1, fabs(r.high))) r = (Range){r.low - 0.5, r.high + 0.5};
    const double raw = (r.high - r.low) / most, ten = pow(10, floor(log10(raw))), times = raw / ten;
    const double step = ten * (times <= 1 ? 1 : times <= 2 ? 2 : times <= 5 ? 5 : 10);
    return (Axis){step * floor(r.low / step + 1e-9), step * ceil(r.high / step - 1e-9), step, from, to, false};
}

Axis log_axis_of(Range r, double from, double to) {
    const double low = r.low > 0 && r.low <= r.high ? fmax(floor(log10(r.low)), LOWEST_DECADE) : LOWEST_DECADE;
    const double high = r.high > 0 ? fmax(ceil(log10(r.high)), low + 1) : low + 1;
    return (Axis){low, high, 1, from, to, true};
}

static int n_tick(const Axis *a) { return (int)floor((a->high - a->low) / a->step + 1e-9) + 1; }
static double tick(const Axis *a, int i) {
    const double v = (round(a->low / a->step) + i) * a->step; // a whole number of steps, so that 0 is 0
    return a->log ? pow(10, v) : v;
}

// ---- figures ----

// A chart shrinks with the page; a heat map, whose cells are small already, soon scrolls.
void svg_open(FILE *f, const char *caption, double width, double height, bool heat) {
    fprintf(f, "<figure style=\"flex:1 1 %.0fpx;max-width:%.0fpx\"><figcaption>%s</figcaption><div class=\"scroll\"><svg role=\"img\" aria-label=\"%s\" "
               "class=\"%s\" viewBox=\"0 0 %.0f %.0f\" style=\"min-width:%.0fpx\">\n",
            width, fmax(482, width), caption, caption, heat ? "heat" : "chart", width, height, heat ? 0.8 * width : 280);
}
void svg_close(FILE *f) { fputs("</svg></div></figure>\n", f); }

void label(FILE *f, double x, double y, const char *class, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(f, "<text x=\"%.1f\" y=\"%.1f\" class=\"%s\">", x, y, class);
    vfprintf(f, format, args);
    fputs("</text>\n", f);
    va_end(args);
}

void dot(FILE *f, double x, double y, double radius, const char *kind, const char *hue, const char *title, ...) {
    if (!isfinite(x) || !isfinite(y)) return;
    va_list args;
    va_start(args, title);
    fprintf(f, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" class=\"%s %s\"><title>", x, y, radius, kind, hue);
    vfprintf(f, title, args);
    fputs("</title></circle>\n", f);
    va_end(args);
}

void whisker(FILE *f, double from, double to, double y) {
    if (isfinite(from) && isfinite(to)) fprintf(f, "<path class=\"whisker\" d=\"M%.1f %.1fv8m0 -4H%.1fm0 -4v8\"/>\n", from, y - 4, to);
}

void x_axis(FILE *f, const Axis *a, double top, double bottom, const char *title, bool shares) {
    const int n = n_tick(a), every = (n + 8) / 9;
    for (int i = 0; i < n; i += every) {
        const double v = tick(a, i), x = at(a, v);
        fprintf(f, "<path class=\"%s\" d=\"M%.1f %.1fV%.1f\"/>", v == 0 && !a->log ? "zero" : "grid", x, top, bottom);
        label(f, x, bottom + 15, "tick mid", "%s%s", a->log && i == 0 ? "&le;&nbsp;" : "", shares ? PERCENT(v) : NUM(v));
    }
    label(f, (a->from + a->to) / 2, bottom + 33, "axis mid", "%s", title);
}

// What a chart's marks mean. line: of line charts.
void legend(FILE *f, const char *hue, bool with, bool line, const char *name) {
    fputs("<span class=\"key\"><svg aria-hidden=\"true\" width=\"26\" height=\"12\" viewBox=\"0 0 26 12\">", f);
    if (line) fprintf(f, "<path class=\"line %s%s\" d=\"M1 6H25\"/>", hue, with ? " dashed" : "");
    else fprintf(f, "<circle class=\"%s %s\" cx=\"13\" cy=\"6\" r=\"4.5\"/>", with ? "hollow" : "dot", hue);
    fprintf(f, "</svg>%s</span>\n", name);
}

void rate_chart(FILE *f, const char *caption, const Rate *rate, int n) {
    const Axis x = {0, 1, 0.25, 60, 268, false};
    const int bottom = 4 + 70 * n;
    if (!n) return;
    svg_open(f, caption, WIDE, bottom + 20, false);
    x_axis(f, &x, 26, bottom, "", true);
    for (int i = 0; i < 2 * n; i++) {
        const Rate *b = &rate[i / 2];
        const int with = i % 2, y = 4 + 70 * (i / 2) + 24 + 20 * with;
        const double v = share(b->k[with], b->n[with]);
        if (!with) label(f, 0, y - 7, "group", "%s", b->group);
        label(f, 52, y + 12, "end", "%s", WITH_NAME[with]);
        if (isfinite(v)) {
            fprintf(f, "<rect class=\"bar %s%s\" x=\"60\" y=\"%d\" width=\"%.1f\" height=\"14\"><title>%s: %s, 95 %% interval %s to %s</title></rect>\n",
                    b->hue, with ? " open" : "", y + 1,
                    fmax(at(&x, v) - 60, 0.5), WITH_NAME[with], PERCENT(v), PERCENT(b->within[with].low), PERCENT(b->within[with].high));
            whisker(f, at(&x, b->within[with].low), at(&x, b->within[with].high), y + 8);
        }
        label(f, 284, y + 12, "value", "%s (%d of %d)", PERCENT(v), b->k[with], b->n[with]);
    }
    svg_close(f);
}

// Rows of dots.

void strip_open(FILE *f, const char *caption, const char *const *name, int n, const Axis *x, const char *title) {
    svg_open(f, caption, WIDE, STRIP_TOP + STRIP_ROW * n + 40, false);
    x_axis(f, x, STRIP_TOP, STRIP_TOP + STRIP_ROW * n, title, false);
    for (int i = 0; i < n; i++) label(f, STRIP_LEFT - 14, strip_y(i) + 4, "end", "%s", name[i]);
}

static void draw_line(FILE *f, const Line *l, const double *at_x, int n, const Axis *x, const Axis *y) {
    bool down = false; // the pen: a value that is none leaves a gap
    fprintf(f, "<path class=\"line %s%s\" d=\"", l->hue, l->with ? " dashed" : "");
    for (int i = 0; i < n; i++) {
        if (isfinite(l->y[i])) fprintf(f, "%c%.1f %.1fh0", down ? 'L' : 'M', at(x, at_x[i]), at(y, l->y[i]));
        down = isfinite(l->y[i]);
    }
    fputs("\"/>\n", f);
    for (int i = 0; i < n; i++)
        dot(f, at(x, at_x[i]), at(y, l->y[i]), n > 24 ? 5 : 3.2, n > 24 ? "unseen" : l->with ? "hollow" : "dot", l->hue, "%s, at %s: %s",
            l->name, NUM(at_x[i]), NUM(l->y[i]));
}

void line_chart(FILE *f, const Chart *c) {
    enum { LEFT = 52, RIGHT = WIDE - 14, TOP = 36, BOTTOM = 216 };
    const int n = c->n;
    Range rx = NO_RANGE, ry = NO_RANGE;
    for (int i = 0; i < c->n_line * n; i++) range_add(&rx, c->x[i % n]), range_add(&ry, c->line[i / n].y[i % n]);
    if (!(ry.low <= ry.high) || !(rx.low < rx.high)) return; // not measured
    Axis x = axis_of(rx, LEFT, RIGHT, min_int(8, n - 1));
    const Axis y = axis_of(ry, BOTTOM, TOP, 5);
    x.high = rx.high;
    svg_open(f, c->caption, WIDE, BOTTOM + 40, false);
    for (int i = 0; i < n_tick(&y); i++) {
        const double v = tick(&y, i);
        fprintf(f, "<path class=\"%s\" d=\"M%d %.1fH%d\"/>", v == 0 ? "zero" : "grid", LEFT, at(&y, v), RIGHT);
        label(f, LEFT - 8, at(&y, v) + 4, "tick end", "%s", NUM(v));
    }
    x_axis(f, &x, BOTTOM, BOTTOM + 4, c->x_title, false);
    label(f, 0, 12, "axis", "%s", c->y_title);
    if (c->mark >= x.low && c->mark <= x.high) {
        const bool left = at(&x, c->mark) > (LEFT + RIGHT) / 2.0;
        fprintf(f, "<path class=\"mark\" d=\"M%.1f %dV%d\"/>", at(&x, c->mark), TOP - 14, BOTTOM);
        label(f, at(&x, c->mark) + (left ? -5 : 5), TOP - 6, left ? "tick end" : "tick", "%s", c->mark_name);
    }
    for (int k = 0; k < c->n_line; k++) draw_line(f, &c->line[k], c->x, n, &x, &y);
    svg_close(f);
}
