// results.c: see results.h
#include "results.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "stats.h"

bool format_parse(const char *name, Format *f, Err *e) {
    static const char *const names[] = {"md", "json", "csv"};
    for (int i = 0; i < 3; i++)
        if (!name || !strcmp(name, names[i])) {
            *f = (Format)i;
            return true;
        }
    return err_set(e, "option -o is '%s', expected md, json or csv", name);
}

void series_add(Series *s, double x) {
    if (s->n < MAX_REPS) s->value[s->n++] = x;
}

double series_mean(const Series *s) { return s->n ? mean_of(s->value, s->n) : NAN; }

double series_median(const Series *s) { return quantile_of(s->value, s->n, 0.5); }

double series_sd(const Series *s) {
    const double mean = series_mean(s);
    double sum = 0;
    for (int i = 0; i < s->n; i++) sum += (s->value[i] - mean) * (s->value[i] - mean);
    return s->n > 1 ? sqrt(sum / (s->n - 1)) : s->n ? 0 : NAN;
}

// ---- JSON and CSV ----

static void put_text(FILE *f, const char *text, Format format) {
    fputc('"', f);
    for (; *text; text++) {
        if (format == FORMAT_JSON && (unsigned char)*text < ' ') fprintf(f, "\\u%04x", (unsigned char)*text);
        else if (format == FORMAT_JSON && (*text == '"' || *text == '\\')) fprintf(f, "\\%c", *text);
        else if (*text == '"') fputs("\"\"", f);
        else fputc(*text, f);
    }
    fputc('"', f);
}

static void put_real(FILE *f, double x) {
    if (isfinite(x)) fprintf(f, "%.9g", x);
    else fputs("null", f);
}

static void put_value(FILE *f, const Field *d, const void *row, Format format) {
    const void *p = (const char *)row + d->at;
    const char *const quote = format == FORMAT_CSV ? "\"" : ""; // as llama-bench does: around everything
    if (d->kind == FIELD_TEXT) {
        put_text(f, *(const char *const *)p, format);
        return;
    }
    fputs(quote, f);
    switch (d->kind) {
    case FIELD_FLAG: fputs(format == FORMAT_CSV ? *(const bool *)p ? "1" : "0" : *(const bool *)p ? "true" : "false", f); break;
    case FIELD_INT: fprintf(f, "%d", *(const int *)p); break;
    case FIELD_INT64: fprintf(f, "%" PRId64, *(const int64_t *)p); break;
    case FIELD_REAL:
        if (format == FORMAT_JSON || isfinite(*(const double *)p)) put_real(f, *(const double *)p);
        break;
    case FIELD_SERIES: {
        const Series *s = p;
        fputc('[', f);
        for (int i = 0; i < s->n; i++) {
            if (i) fputs(", ", f);
            put_real(f, s->value[i]);
        }
        fputc(']', f);
        break;
    }
    case FIELD_TEXT: break;
    }
    fputs(quote, f);
}

void report_json(FILE *f, const Field *field, int n_field, const void *rows, size_t row_size, int n_row) {
    fputs("[\n", f);
    for (int r = 0; r < n_row; r++) {
        for (int i = 0; i < n_field; i++) {
            fprintf(f, "%s    \"%s\": ", i ? ",\n" : "  {\n", field[i].key);
            put_value(f, &field[i], (const char *)rows + (size_t)r * row_size, FORMAT_JSON);
        }
        fputs(r + 1 < n_row ? "\n  },\n" : "\n  }\n", f);
    }
    fputs("]\n", f);
}

void report_csv(FILE *f, const Field *field, int n_field, const void *rows, size_t row_size, int n_row) {
    for (int r = -1; r < n_row; r++) {
        bool first = true;
        for (int i = 0; i < n_field; i++) {
            if (field[i].kind == FIELD_SERIES) continue;
            if (!first) fputc(',', f);
            first = false;
            if (r < 0) fputs(field[i].key, f);
            else put_value(f, &field[i], (const char *)rows + (size_t)r * row_size, FORMAT_CSV);
        }
        fputc('\n', f);
    }
}

// ---- Markdown ----

bool table_open(Table *t, int n_col, Err *e) {
    *t = (Table){.cell = malloc(sizeof *t->cell * MAX_CELL), .n_col = n_col};
    return t->cell || err_set(e, "no memory for a table");
}

void table_text(Table *t, const char *format, ...) {
    if (t->n == MAX_CELL) return;
    va_list args;
    va_start(args, format);
    vsnprintf(t->cell[t->n++], CELL, format, args);
    va_end(args);
}

void table_number(Table *t, const char *format, double x) {
    char text[CELL];
    if (isnan(x)) snprintf(text, sizeof text, "-");
    else snprintf(text, sizeof text, format, x);
    table_text(t, "%s", text);
}

static int width_of(const char *text) { // characters of UTF-8
    int n = 0;
    for (; *text; text++) n += ((unsigned char)*text & 0xC0) != 0x80;
    return n;
}

void table_print_close(FILE *f, Table *t, int n_left) {
    int width[32];
    for (int c = 0; c < t->n_col; c++) {
        width[c] = 2;
        for (int i = c; i < t->n; i += t->n_col) width[c] = max_int(width[c], width_of(t->cell[i]));
    }
    for (int i = 0; i < t->n; i++) {
        const int c = i % t->n_col, gap = width[c] - width_of(t->cell[i]);
        if (c < n_left) fprintf(f, "| %s%*s ", t->cell[i], gap, "");
        else fprintf(f, "| %*s%s ", gap, "", t->cell[i]);
        if (c + 1 < t->n_col) continue;
        fputs("|\n", f);
        for (int k = 0; i < t->n_col && k < t->n_col; k++) {
            fputs("| ", f);
            for (int w = 1; w < width[k]; w++) fputc('-', f);
            fputs(k < n_left ? "- " : ": ", f);
            if (k + 1 == t->n_col) fputs("|\n", f);
        }
    }
    free(t->cell);
    *t = (Table){0};
}
