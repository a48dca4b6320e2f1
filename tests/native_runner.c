/* Runs the kernel in C outside of Python, for processors that an emulator has and for sanitizers: see native_runner.py.

   runner INPUT OUTPUT: INPUT has a model as Python laid it out in memory, the sizes of a cache, and the tokens of some
   passes; OUTPUT gets the logits. */

#ifdef VNNI_OF_AVX512 /* AVX-VNNI on a processor that has the same instruction in the encoding of AVX-512 alone */
#include <immintrin.h>
#define __AVXVNNI__ 1
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
#endif

#include "kernel.c"

#include <stdio.h>

typedef struct {
    uint64_t address;
    int64_t bytes;
    void *here;
} Segment;

static void fail(const char *what) {
    fprintf(stderr, "runner: %s\n", what);
    exit(1);
}

/* Memory of its own for each array, so that a sanitizer sees a read beyond its end. */
static void *read_array(FILE *file, int64_t bytes) {
    void *array = malloc(bytes);
    if (!array || fread(array, 1, bytes, file) != (size_t)bytes) fail("the input ends too early");
    return array;
}

static int64_t read_number(FILE *file) {
    int64_t *number = read_array(file, sizeof(int64_t)), value = *number;
    free(number);
    return value;
}

static void *find(const Segment *segments, int64_t count, uint64_t address) {
    for (int64_t i = 0; i < count; i++)
        if (segments[i].address == address) return segments[i].here;
    return NULL;
}

/* Addresses in a structure become those of the arrays here. */
static void relocate(void *structure, int64_t bytes, const Segment *segments, int64_t count) {
    uint64_t *words = structure;
    for (int64_t i = 0; i < bytes / 8; i++) {
        void *here = words[i] ? find(segments, count, words[i]) : NULL;
        if (here) words[i] = (uintptr_t)here;
    }
}

int main(int count, char **arguments) {
    if (count != 3) fail("expected INPUT and OUTPUT");
    FILE *in = fopen(arguments[1], "rb"), *out = fopen(arguments[2], "wb");
    if (!in || !out) fail("a file cannot be opened");

    int64_t n_segments = read_number(in);
    Segment *segments = malloc(n_segments * sizeof(Segment));
    for (int64_t i = 0; i < n_segments; i++) {
        segments[i].address = read_number(in);
        segments[i].bytes = read_number(in);
        segments[i].here = read_array(in, segments[i].bytes);
    }
    Model *m = read_array(in, sizeof(Model));
    relocate(m, sizeof(Model), segments, n_segments);
    relocate((void *)m->layers, m->n_layers * sizeof(Layer), segments, n_segments);

    Cache cache = {.dtype = read_number(in), .capacity = read_number(in)};
    cache.keys = calloc(1, read_number(in));
    cache.values = calloc(1, read_number(in));
    int64_t scale_bytes = read_number(in);
    if (scale_bytes) cache.key_scales = calloc(1, scale_bytes), cache.value_scales = calloc(1, scale_bytes);

    int64_t threads = read_number(in), passes = read_number(in);
    for (int64_t pass = 0; pass < passes; pass++) {
        int64_t rows = read_number(in), wanted = read_number(in), size = rows * sizeof(int64_t);
        int64_t *tokens = read_array(in, size), *sequences = read_array(in, size), *positions = read_array(in, size);
        int64_t logits_size = rows * round_up(m->vocab_size) * sizeof(float);
        float *logits = wanted ? malloc(logits_size) : NULL;
        if (forward(m, &cache, rows, tokens, sequences, positions, logits, threads) != DONE) fail("a forward pass failed");
        if (wanted) fwrite(logits, 1, logits_size, out);
        free(tokens), free(sequences), free(positions), free(logits);
    }

    free(cache.keys), free(cache.values), free(cache.key_scales), free(cache.value_scales), free(m);
    for (int64_t i = 0; i < n_segments; i++) free(segments[i].here);
    free(segments);
    fclose(in);
    return fclose(out);
}
