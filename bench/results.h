// results.h: rows of results as people and programs want them: a table in Markdown, JSON (an array of objects), CSV.
#ifndef RESULTS_H
#define RESULTS_H

#include "base.h"

typedef enum { FORMAT_MD, FORMAT_JSON, FORMAT_CSV } Format;
MUST_CHECK bool format_parse(const char *name, Format *f, Err *e); // NULL: md

enum { MAX_REPS = 1000 };
typedef struct {
    double value[MAX_REPS];
    int n;
} Series;
void series_add(Series *s, double x);
double series_mean(const Series *s);   // NaN when it is empty, as the next
double series_sd(const Series *s);     // of a sample (n - 1); of one value 0
double series_median(const Series *s);

typedef enum { FIELD_TEXT, FIELD_FLAG, FIELD_INT, FIELD_INT64, FIELD_REAL, FIELD_SERIES } FieldKind; // const char *, bool, int, int64_t, double, Series
typedef struct {
    const char *key;
    FieldKind kind;
    size_t at;
} Field; // of a struct that is a row. What is no number (NaN) is null, or empty in CSV; CSV has no series

void report_json(FILE *f, const Field *field, int n_field, const void *rows, size_t row_size, int n_row);
void report_csv(FILE *f, const Field *field, int n_field, const void *rows, size_t row_size, int n_row);

// A table of aligned columns: cells are added one by one, line by line, the heads first. What is no number stays out.
enum { MAX_CELL = 4000, CELL = 96 };
typedef struct {
    char (*cell)[CELL];
    int n, n_col;
} Table;
MUST_CHECK bool table_open(Table *t, int n_col, Err *e);
PRINTF_LIKE(2, 3) void table_text(Table *t, const char *format, ...);
void table_number(Table *t, const char *format, double x); // NaN: "-"
void table_print_close(FILE *f, Table *t, int n_left);     // so many columns are aligned to the left, the others to the right

#endif
