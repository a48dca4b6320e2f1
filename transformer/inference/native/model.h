/* The structures of a model as packed_model.py fills them in, and their layout for kernel.py. */

#include <stddef.h>
#include <stdint.h>

typedef enum { FP32, BF16, FP16, INT8 } DType;
typedef enum { NO_NORM, LAYER_NORM, RMS_NORM } NormKind;
typedef enum { RELU, GELU, SWIGLU, GEGLU } Activation;
typedef enum { DONE, OUT_OF_MEMORY, NO_SUCH_TOKEN, SEQUENCE_TOO_LONG, UNKNOWN_CHOICE } Result;

typedef struct { /* y = W x + b. weight: (outputs / 16, inputs, 16); int8: (outputs / 16, inputs / 4, 16, 4) */
    const void *weight;
    const float *scale, *sum; /* int8: (outputs), the scale of each output and the sum of its weights */
    const float *bias; /* or NULL */
    int64_t dtype, inputs, outputs; /* int8: inputs is a multiple of 4 */
} Linear;

typedef struct {
    const float *weight, *bias;
    int64_t kind;
    double eps;
} Norm;

typedef struct { /* norms that a layer does not have are NO_NORM, tables NULL */
    Norm attention_norm, feed_forward_norm; /* of the sub-layer's input */
    Norm attention_output_norm, feed_forward_output_norm; /* of its output: see Model.normalize_sums */
    Norm query_norm, key_norm; /* per head */
    Norm joint_query_norm, joint_key_norm; /* over all heads of a token (OLMo 2) */
    Linear qkv; /* queries, keys and values, concatenated */
    Linear output;
    Linear up; /* SwiGLU and GEGLU: gate and up, concatenated */
    Linear down;
    const float *cosine, *sine; /* RoPE: (context_length, head_dim) */
    int64_t window; /* tokens that a query attends to, its own included; context_length: all of them */
} Layer;

typedef struct {
    int64_t vocab_size, context_length, n_layers, d_model, n_heads, n_kv_heads, head_dim, d_feed_forward;
    int64_t normalize_sums; /* post-norm: output norms apply to the sum with the residual stream, not before it */
    int64_t activation;
    int64_t embedding_dtype; /* FP32 or BF16 */
    double embedding_scale, score_scale;
    const void *embedding; /* (vocab_size, d_model) */
    const float *position_embedding; /* (context_length, d_model), added to token embeddings, or NULL */
    const Layer *layers;
    Norm final_norm;
    Linear head;
} Model;

typedef struct { /* keys and values, each (sequences, n_layers, n_kv_heads, ...) with these dimensions behind */
    void *keys; /* (capacity / 16, head_dim, 16); INT8: (capacity / 16, head_dim / 4, 16, 4), BYTE_BIAS added */
    void *values; /* (capacity, head_dim rounded up to 16) */
    float *key_scales, *value_scales; /* INT8: (capacity); head_dim of keys is rounded up to 4 */
    int64_t dtype, capacity; /* FP32, FP16 or INT8; a multiple of 16 */
} Cache;

/* Sizes, offsets and constants as the compiler has them; kernel.py compares them with its own when it loads this. */
typedef struct {
    const char *name;
    int64_t value;
} LayoutEntry;

#define SIZE(type) {#type, sizeof(type)}
#define OFFSET(type, field) {#type "." #field, offsetof(type, field)}
#define CONSTANT(name) {#name, name}

const LayoutEntry layout[] = {
    SIZE(Linear), OFFSET(Linear, weight), OFFSET(Linear, scale), OFFSET(Linear, sum), OFFSET(Linear, bias),
    OFFSET(Linear, dtype), OFFSET(Linear, inputs), OFFSET(Linear, outputs),
    SIZE(Norm), OFFSET(Norm, weight), OFFSET(Norm, bias), OFFSET(Norm, kind), OFFSET(Norm, eps),
    SIZE(Layer), OFFSET(Layer, attention_norm), OFFSET(Layer, feed_forward_norm),
    OFFSET(Layer, attention_output_norm), OFFSET(Layer, feed_forward_output_norm), OFFSET(Layer, query_norm),
    OFFSET(Layer, key_norm), OFFSET(Layer, joint_query_norm), OFFSET(Layer, joint_key_norm), OFFSET(Layer, qkv),
    OFFSET(Layer, output), OFFSET(Layer, up), OFFSET(Layer, down), OFFSET(Layer, cosine), OFFSET(Layer, sine),
    OFFSET(Layer, window),
    SIZE(Model), OFFSET(Model, vocab_size), OFFSET(Model, context_length), OFFSET(Model, n_layers),
    OFFSET(Model, d_model),
    OFFSET(Model, n_heads), OFFSET(Model, n_kv_heads), OFFSET(Model, head_dim), OFFSET(Model, d_feed_forward),
    OFFSET(Model, normalize_sums), OFFSET(Model, activation), OFFSET(Model, embedding_dtype),
    OFFSET(Model, embedding_scale), OFFSET(Model, score_scale), OFFSET(Model, embedding),
    OFFSET(Model, position_embedding),
    OFFSET(Model, layers), OFFSET(Model, final_norm), OFFSET(Model, head),
    SIZE(Cache), OFFSET(Cache, keys), OFFSET(Cache, values), OFFSET(Cache, key_scales),
    OFFSET(Cache, value_scales), OFFSET(Cache, dtype), OFFSET(Cache, capacity),
    CONSTANT(FP32), CONSTANT(BF16), CONSTANT(FP16), CONSTANT(INT8), CONSTANT(LAYER_NORM), CONSTANT(RMS_NORM),
    CONSTANT(RELU), CONSTANT(GELU), CONSTANT(SWIGLU), CONSTANT(GEGLU), CONSTANT(OUT_OF_MEMORY),
    CONSTANT(NO_SUCH_TOKEN), CONSTANT(SEQUENCE_TOO_LONG), CONSTANT(UNKNOWN_CHOICE), {NULL, 0},
};

