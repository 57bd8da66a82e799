// bench.h: the subcommands of the program `bench`, one file each. argv[0] is the command's own name.
#ifndef BENCH_H
#define BENCH_H

#include "base.h"

typedef enum { DONE, FAILED, USAGE } Status; // exit status; the error says why not DONE

Status bench_model(int argc, char **argv, Err *e);
Status bench_kernels(int argc, char **argv, Err *e);
Status bench_roofline(int argc, char **argv, Err *e);
Status bench_compare(int argc, char **argv, Err *e);
Status bench_synth(int argc, char **argv, Err *e);
Status bench_calibrate(int argc, char **argv, Err *e);
Status bench_experts(int argc, char **argv, Err *e);

#endif
