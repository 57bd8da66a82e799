// abliterate.h: the commands of the program `abliterate`. Each prints its findings to stdout, everything else to stderr, and
// returns false with one line when there is no result.
#ifndef ABLITERATE_H
#define ABLITERATE_H

#include "extract.h"
#include "report.h"

MUST_CHECK bool command_extract(const ExtractOptions *o, Err *e);
MUST_CHECK bool command_report(const ReportOptions *o, Err *e);
MUST_CHECK bool command_show(const char *path, Err *e);

#endif
