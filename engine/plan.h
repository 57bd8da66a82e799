// plan.h: the best use of a device and a host for a model, chosen before anything is loaded. Pure: units (units.h) and a machine (machine.h) in,
// placements with their memory and predicted speeds (timeline.h) out. Every placement of every family below that fits is tried, and the one
// that decodes fastest is the plan, of equals the one with faster prompts: so more memory is never predicted slower, and nothing is
// predicted slower than the CPU alone or than layers from the output end, which are among them.
#ifndef PLAN_H
#define PLAN_H

#include "timeline.h"

typedef enum {
    FAMILY_HOST,    // everything on the CPU
    FAMILY_LAYERS,  // half layers from the output end
    FAMILY_UNITS,   // single units, those first that save the host most time for each byte of the device (FFNs before KV caches)
    FAMILY_DENSE,   // the head, and attention and dense FFN of layers from the output end; no experts
    FAMILY_WHOLE,   // all but experts, and the experts of as many layers, without doing two things at once: what that alone would be worth
    FAMILY_OVERLAP, // the same, the host's experts beside the device's dense FFN
    FAMILY_SHARE    // all but experts, and as many experts of every layer; both sides at once
} Family;
enum { N_FAMILY = FAMILY_SHARE + 1 };
extern const char *const FAMILY_NAMES[N_FAMILY];

typedef enum { PIN_NONE, PIN_HOST, PIN_DEVICE } Pin;
enum { LAYERS_AUTO = -1 };

typedef struct {
    double vram;    // bytes of the device, the reserve included; 0: there is none
    double reserve; // of it kept free
    int gpu_layers; // at most so many layers from the output end, which counts as one; LAYERS_AUTO: all
    int n_cpu_moe;  // experts of the first so many layers stay on the host
    const Pin *pin; // [units], or NULL
    int depth;      // positions before the decoded token
    int n_prompt;   // tokens of the prompt
    bool together;  // a layer's experts are where its FFN is, all of them: for taps that compute with them (TAP_EXPERTS)
    double ring;    // of the reserve, through which prompts may have the host's weights copied to the device; 0: they cannot
} PlanQuery;

typedef struct {
    Placement place;    // part NULL: nothing of this family fits, or is allowed
    double device, host;   // bytes: weights, KV cache, work buffers; of the device with the reserve, 0 if it is not used
    double decode, prompt; // tokens/s
    int layers, experts;   // of the device: half layers, units or layers, as the family counts; FAMILY_SHARE: experts of all layers
} Candidate;

typedef struct {
    const PlanUnits *u;
    const Machine *m;
    PlanQuery q;
    int *rank;             // [units] of FAMILY_UNITS, 0: what saves most
    int *source;           // [units] of attention: the unit whose KV cache it reads
    int *size_rank;        // [units] of experts: 0 for the largest
    int n_expert, n_moe;   // of all layers; layers that have some
    int share_step;        // so many experts more at a time, of FAMILY_SHARE
    Candidate best[N_FAMILY];
    int chosen;            // family
} Plan;

MUST_CHECK bool plan_make(Plan *p, const PlanUnits *u, const Machine *m, const PlanQuery *q, Err *e);
void plan_close(Plan *p);

// Why unit i of a candidate is where it is, in a few words.
const char *plan_reason(const Plan *p, const Candidate *c, int i);
// All of the model is on the device.
bool plan_is_whole(const Plan *p, const Candidate *c);

#endif
