// page.h: an HTML page of figures (figure.h): its head with the style of everything they draw, and its end. Nothing is loaded from
// elsewhere.
#ifndef PAGE_H
#define PAGE_H

#include "figure.h"

// Colours of a heat map: classes c0 (blue: low) .. c20 (none) .. c40 (orange: high); c41: no value.
enum { N_HUE = 41 };

PRINTF_LIKE(2, 3) void page_open(FILE *f, const char *title, ...); // title: escaped
void page_close(FILE *f);

#endif
