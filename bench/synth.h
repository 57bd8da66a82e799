// synth.h: `bench synth` writes a synthetic model to stay; --synthetic one that nobody sees.
#ifndef SYNTH_H
#define SYNTH_H

#include "model.h"
#include "synthetic.h"

// In $TMPDIR, or in memory if it fits there, or in /tmp; has no name any more when it is open, nor after an error or a signal.
MUST_CHECK bool synth_open(Model *m, const Synthetic *s, Err *e);

#endif
