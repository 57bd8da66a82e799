// json.h: the pieces of a JSON file that need care: texts that may hold anything, numbers that may be none.
#ifndef JSON_H
#define JSON_H

#include "base.h"

void json_text(FILE *f, const char *s);   // quoted and escaped; what is not UTF-8 becomes U+FFFD
void json_number(FILE *f, double v);      // what is not a number (NaN, infinity) becomes null
void json_named(FILE *f, const char *name, double v);                  // , "name": v
void json_numbers(FILE *f, const char *name, const double *v, int n);  // , "name": [v, ...]

#endif
