// model.h: a model as data: what the file's metadata says (Config, LayerDesc) and where its weights lie (Layer).
// model_open maps the file, arch.c describes it, bind.c finds and checks every tensor. No weight is copied; nothing
// changes afterwards. A pointer that is NULL, or a number that is 0, means "this model does not do that".
#ifndef MODEL_H
#define MODEL_H

#include "backend.h"
#include "gguf.h"

enum { MAX_LAYER = 512, MAX_EXPERT = 512, MAX_STREAM = 4 };

typedef struct {
    char arch[32];
    int n_layer, n_embd, n_vocab, n_ctx_train;
    float norm_eps;
    float embed_scale;      // multiplies the embedding row
    float final_softcap;    // 0 = none
    int n_embd_per_layer;   // width of the per-layer input, 0 = none (Gemma 3n, Gemma 4 E)
    int n_stream;           // AltUp residual streams, 0 = none (Gemma 3n)
    int stream_active;
} Config;

typedef struct {
    int n_head, n_head_kv, head_dim;
    int window;             // 0 = sees everything
    float attn_scale;
    float attn_softcap;     // 0 = none
    int kv_source;          // the layer whose KV cache is read: itself, or an earlier one
    bool v_norm;            // RMSNorm without gain on every V head
    Rope rope;              // freq filled by bind (it may need the factor tensor)
    float rope_base, rope_scale; // rope_scale multiplies the angle: 1 / factor
    bool rope_factors;      // the angles are divided by the rope_freqs tensor
    int yarn_ctx;           // YaRN: the context the model was trained with; 0 = no YaRN
    int n_ff;               // width of the dense FFN; 0 = none
    Activation act;
    int n_expert, n_expert_used, n_ff_expert;
    float sparsity;         // Gemma 3n: keep gate values above mean + sparsity * sd; 0 = keep all
} LayerDesc;

// The experts of a layer that one side computes.
typedef struct {
    const Tensor *gate, *up, *down; // stacks: the file's, or what of them is on the device
    int *slot;                      // MoeArgs.slot, in that side's memory; NULL: it has all of them
} ExpertShare;

typedef struct {
    LayerDesc d;
    const Tensor *attn_norm, *attn_q, *attn_k, *attn_v, *attn_output;
    const Tensor *attn_q_bias, *attn_k_bias, *attn_v_bias, *attn_output_bias;
    const Tensor *attn_q_norm, *attn_k_norm, *post_attention_norm;
    const Tensor *ffn_norm, *ffn_gate, *ffn_up, *ffn_down, *post_ffw_norm;
    const Tensor *ffn_gate_bias, *ffn_up_bias, *ffn_down_bias;
    // experts
    const Tensor *ffn_gate_inp, *ffn_gate_inp_scale, *ffn_gate_exps, *ffn_up_exps, *ffn_down_exps, *ffn_down_exps_scale;
    const Tensor *pre_ffw_norm_2, *post_ffw_norm_1, *post_ffw_norm_2;
    // per-layer input
    const Tensor *inp_gate, *proj, *post_norm;
    float output_scale;     // multiplies the residual stream at the end of the layer; 0 = none
    // Gemma 3n
    const Tensor *altup_correct_coef, *altup_correct_scale, *altup_predict_coef, *altup_router, *altup_router_norm;
    const Tensor *laurel_l, *laurel_r, *laurel_post_norm;
    // Where it is computed, if the session's backend has a host (Backend.host); set by place_set.
    bool attn_on_host, ffn_on_host;
    int n_expert_device;    // so many experts, the first ones of expert_order, by the backend, the others by its host, wherever the rest of the FFN is
    const uint16_t *expert_order; // [n_expert] those first that should be on the device first; NULL: 0, 1, 2 ... Set by place_experts
    const double *expert_away;    // [0 .. n_expert on the device][0 .. n_expert_used]: how often so many of a token's are on the host; NULL: by chance
    ExpertShare share[2];   // of the backend, of its host; bind: all. Divided by place_load
    Tensor part[3];         // what share[0] points to of gate, up and down where experts are on both sides
    const void **part_slices; // [3][n_expert] of part where they are not the first ones
} Layer;

typedef struct {
    Gguf gguf;
    Config c;
    Layer *layers;                 // [n_layer]
    const Tensor *token_embd, *output_norm;
    const Tensor *output;          // the head; token_embd itself when tied
    const Tensor *per_layer_token_embd, *per_layer_proj_norm;
    const Tensor *per_layer_proj[2]; // rows of per_layer_model_proj: of the layers before the last that writes keys (NULL: none), of that and the others
    const Tensor *altup_proj[MAX_STREAM - 1], *altup_unembd_proj[MAX_STREAM - 1]; // Gemma 3n: one for each further stream
    bool head_on_host;             // as in Layer
    int *slots[2];                 // [n_layer][model_most_experts] what ExpertShare.slot of all layers points into; NULL: no layer's experts are on both sides
    Tensor *tensors;               // every Tensor above lives here, [n_tensor]
    int n_tensor, cap_tensor;
    void **owned;                  // rope tables, slice tables, vectors converted to float: freed by model_close
    int n_owned, cap_owned;
    uint64_t weight_bytes;         // of the bound tensors
    int64_t n_param, n_param_active; // active: per token, n_expert_used of n_expert
} Model;

MUST_CHECK bool model_open(Model *m, const char *path, Err *e);
MUST_CHECK bool model_from_gguf(Model *m, Err *e); // m->gguf is open: describe and bind
// Every tensor the forward pass reads, with the layer (n_layer: the head) and whether it is of the layer's FFN half. Not those
// that only views are taken of, nor the tables that only embed reads. A tied head is token_embd. Until visit returns false.
bool model_each(Model *m, bool (*visit)(void *ctx, Tensor *t, int layer, bool ffn), void *ctx);
int model_most_experts(const Model *m); // of a layer
int model_last_writer(const Model *m); // of keys and values: later layers read those of an earlier one
void model_close(Model *m);
// SHA-256 over names, types, shapes, and the first and last 4 KiB of every tensor: tells models and edits of them apart
// without reading gigabytes. hex [65].
void model_fingerprint(const Model *m, char *hex);

MUST_CHECK bool arch_describe(Model *m, Err *e);   // arch.c: fills c and layers[].d
const char *arch_required(const char *arch);       // arch.c: tensors this architecture needs beyond the common ones, blank-separated
MUST_CHECK bool model_bind(Model *m, Err *e);      // bind.c: fills the tensors and the rope tables
void *model_alloc(Model *m, size_t bytes);         // zeroed, freed by model_close; NULL: no memory

#endif
