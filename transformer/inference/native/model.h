/* The structures of a model as arranged_model.py fills them in, and their layout for kernel.py. */

#include <stddef.h>
#include <stdint.h>

typedef enum { FP32, BF16, FP16, INT8 } Kind;
typedef enum { NO_NORM, LAYER_NORM, RMS_NORM } NormKind;
typedef enum { RELU, GELU, SWIGLU, GEGLU } Activation;
typedef enum { DONE, OUT_OF_MEMORY, NO_SUCH_TOKEN, SEQUENCE_TOO_LONG, UNKNOWN_CHOICE } Result;

typedef struct { /* y = W x + b; weight (out / 16, in, 16), int8: (out / 16, in / 4, 16, 4) */
    const void *weight;
    const float *scale, *sum; /* int8: the scale of each output, and the sum of its weights */
    const float *bias; /* or NULL */
    int64_t kind, inputs, outputs; /* int8: inputs is a multiple of 4 */
} Product;

typedef struct {
    const float *weight, *bias;
    int64_t kind;
    double eps;
} Norm;

typedef struct { /* what a layer does not have is of the kind NO_NORM, or NULL */
    Norm attention_norm, feed_forward_norm; /* of what goes into the sub-layer */
    Norm attention_output_norm, feed_forward_output_norm; /* of what comes out: see Model.normalize_sums */
    Norm query_norm, key_norm; /* of each head by itself */
    Norm joint_query_norm, joint_key_norm; /* of all heads of a token together */
    Product project; /* queries, keys and values, one after the other */
    Product output;
    Product up; /* swiglu and geglu: gate and up, one after the other */
    Product down;
    const float *cosine, *sine; /* (context, key_width) */
    int64_t window; /* tokens that a query looks back over, its own included; all of them: the context */
} Layer;

typedef struct {
    int64_t vocabulary, context, n_layers, width, n_heads, n_kv_heads, key_width, value_width, hidden;
    int64_t normalize_sums; /* output norms are of the sum with the residual stream, not of what is added to it */
    int64_t activation;
    int64_t embedding_kind; /* FP32 or BF16 */
    double embedding_scale, score_scale;
    const void *embedding; /* (vocabulary, width) */
    const float *table; /* (context, width), added to embeddings, or NULL */
    const Layer *layers;
    Norm final_norm;
    Product head;
} Model;

typedef struct { /* of each sequence, layer and key-value head */
    void *keys; /* (capacity / 16, key_width, 16); INT8: (capacity / 16, key_width / 4, 16, 4), with 128 added */
    void *values; /* (capacity, value_width rounded up to 16) */
    float *key_scales, *value_scales; /* (capacity), of INT8, whose keys have a width rounded up to 4 */
    int64_t kind, capacity; /* FP32, FP16 or INT8; a multiple of 16 */
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
    SIZE(Product), OFFSET(Product, weight), OFFSET(Product, scale), OFFSET(Product, sum), OFFSET(Product, bias),
    OFFSET(Product, kind), OFFSET(Product, inputs), OFFSET(Product, outputs),
    SIZE(Norm), OFFSET(Norm, weight), OFFSET(Norm, bias), OFFSET(Norm, kind), OFFSET(Norm, eps),
    SIZE(Layer), OFFSET(Layer, attention_norm), OFFSET(Layer, feed_forward_norm),
    OFFSET(Layer, attention_output_norm), OFFSET(Layer, feed_forward_output_norm), OFFSET(Layer, query_norm),
    OFFSET(Layer, key_norm), OFFSET(Layer, joint_query_norm), OFFSET(Layer, joint_key_norm), OFFSET(Layer, project),
    OFFSET(Layer, output), OFFSET(Layer, up), OFFSET(Layer, down), OFFSET(Layer, cosine), OFFSET(Layer, sine),
    OFFSET(Layer, window),
    SIZE(Model), OFFSET(Model, vocabulary), OFFSET(Model, context), OFFSET(Model, n_layers), OFFSET(Model, width),
    OFFSET(Model, n_heads), OFFSET(Model, n_kv_heads), OFFSET(Model, key_width), OFFSET(Model, value_width),
    OFFSET(Model, hidden), OFFSET(Model, normalize_sums), OFFSET(Model, activation), OFFSET(Model, embedding_kind),
    OFFSET(Model, embedding_scale), OFFSET(Model, score_scale), OFFSET(Model, embedding), OFFSET(Model, table),
    OFFSET(Model, layers), OFFSET(Model, final_norm), OFFSET(Model, head),
    SIZE(Cache), OFFSET(Cache, keys), OFFSET(Cache, values), OFFSET(Cache, key_scales),
    OFFSET(Cache, value_scales), OFFSET(Cache, kind), OFFSET(Cache, capacity),
    CONSTANT(FP32), CONSTANT(BF16), CONSTANT(FP16), CONSTANT(INT8), CONSTANT(LAYER_NORM), CONSTANT(RMS_NORM),
    CONSTANT(RELU), CONSTANT(GELU), CONSTANT(SWIGLU), CONSTANT(GEGLU), CONSTANT(OUT_OF_MEMORY),
    CONSTANT(NO_SUCH_TOKEN), CONSTANT(SEQUENCE_TOO_LONG), CONSTANT(UNKNOWN_CHOICE), {NULL, 0},
};

