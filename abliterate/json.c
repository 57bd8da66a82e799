// json.c: see json.h
#include "json.h"

#include <math.h>

#include "unicode.h"

void json_text(FILE *f, const char *s) {
    fputc('"', f);
    for (; *s; s++) {
        const unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\') fprintf(f, "\\%c", c);
        else if (c < ' ' || c == 0x7F) fprintf(f, "\\u%04x", c);
        else { // a whole character, or U+FFFD
            uint32_t cp;
            const int n = utf8_decode(s, strlen(s), &cp);
            if (c < 0x80 || (n > 1 && (cp < 0xD800 || cp > 0xDFFF))) fwrite(s, 1, (size_t)n, f);
            else fputs("\\ufffd", f);
            s += n - 1;
        }
    }
    fputc('"', f);
}

void json_number(FILE *f, double v) {
    if (isfinite(v)) fprintf(f, "%.9g", v);
    else fputs("null", f);
}

void json_named(FILE *f, const char *name, double v) {
    fprintf(f, ", \"%s\": ", name);
    json_number(f, v);
}

void json_numbers(FILE *f, const char *name, const double *v, int n) {
    fprintf(f, ", \"%s\": [", name);
    for (int i = 0; i < n; i++) {
        if (i) fputs(", ", f);
        json_number(f, v[i]);
    }
    fputc(']', f);
}
