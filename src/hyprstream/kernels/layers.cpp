// Whole layers of a decoder for the few rows of a decoding step, in one call.
//
// Nothing is computed here but sums: the other kernels are called one after the other, and every
// number is that of the same calls from Python. What is saved is the way there and back, some
// 15 times a layer.

#include <cstring>
#include <utility>
#include <vector>

#include "calls.h"
#include "numbers.h"
#include "pool.h"

namespace {

constexpr int64_t kBfloat16 = 1;
constexpr int64_t kPositionsOfPiece = 256;  // of keys, in attention: some 10 us

EVERY_PROCESSOR void add_rows(const Bfloat16* x, int64_t count, Bfloat16* y) {
    for (int64_t i = 0; i < count; ++i) narrow(wide(y[i]) + wide(x[i]), y + i);
}

EVERY_PROCESSOR void add_bias(const Bfloat16* bias, int64_t num_rows, int64_t width, Bfloat16* y) {
    for (int64_t row = 0; row < num_rows; ++row, y += width)
        for (int64_t i = 0; i < width; ++i) narrow(wide(y[i]) + wide(bias[i]), y + i);
}

}  // namespace

// Each of these is laid out as the class of its name in native.py, with `Native` before it.

// A linear layer: either kind of weight, and a bias or null.
struct Linear {
    const Packed* packed;
    const Dense* dense;
    const Bfloat16* bias;

    int64_t outputs() const { return packed ? packed->outputs : dense->outputs; }
    int64_t inputs() const { return packed ? packed->inputs : dense->inputs; }
};

enum Place { kQ, kK, kV, kO, kGate, kUp, kDown, kPlaces };

struct Layer {
    Linear linears[kPlaces];
    const float *norm, *mlp_norm, *q_norm, *k_norm;  // scales; those of q and k may be null
    int64_t heads, kv_heads, head_width, window, rope;
    float eps, scale, softcap;
};

// What adapters add to a linear layer: see hyprstream_low_rank. `a` is null for nothing.
struct LowRank {
    const void *a, *b;
    int64_t num_groups;
    const int32_t *ranks, *ends, *rows;
};

// Cosines and sines of each row, for one way to rotate.
struct Rotation {
    const void *cosines, *sines;
    int64_t turned;
};

// Where each row's keys lie, and its new ones go: see hyprstream_attend. One row, one query.
struct Reads {
    const int32_t *ends, *tables, *blocks;
    int64_t block_tokens;
    const int64_t* places;
    void* const* keys;  // of each layer
    void* const* values;
    int64_t in_codes;  // 1 for keys and values in 8 bits: see attention_codes.h
};

namespace {

struct Step {
    const Rotation* rotations;
    const Reads& reads;
    int64_t num_rows, threads, instructions;
};

// Rows between products. No kernel reads and writes the same ones: compilers make two of a loop
// that may, and results are to be those of one.
struct Scratch {
    enum Use { kNormed, kQueries, kKeys, kValues, kMoreQueries, kMoreKeys, kUses };
    std::vector<Bfloat16> rows[kUses];

    Bfloat16* at(Use use, int64_t count) {
        if (rows[use].size() < static_cast<size_t>(count)) rows[use].resize(count);
        return rows[use].data();
    }
};

// Up to three layers of the same rows, with biases and adapters.
void apply(const Layer& layer, const LowRank* adapters, const Step& step, const Bfloat16* x,
           Place first, int count, Bfloat16* const* results) {
    const Linear* linears = layer.linears + first;
    const Packed* packed[3] = {};
    const Dense* dense[3] = {};
    Bfloat16* y[3] = {};
    for (int i = 0; i < count; ++i) {
        packed[i] = linears[i].packed;
        dense[i] = linears[i].dense;
        y[i] = results[i];
    }
    if (packed[0])
        hyprstream_packed_products(kBfloat16, x, step.num_rows, step.threads, step.instructions,
                                   packed[0], y[0], packed[1], y[1], packed[2], y[2]);
    else
        hyprstream_dense_products(kBfloat16, x, step.num_rows, step.threads, step.instructions,
                                  dense[0], y[0], dense[1], y[1], dense[2], y[2]);
    for (int i = 0; i < count; ++i) {
        const int64_t outputs = linears[i].outputs();
        if (linears[i].bias) add_bias(linears[i].bias, step.num_rows, outputs, y[i]);
        if (!adapters || !adapters[first + i].a) continue;
        const LowRank& added = adapters[first + i];
        hyprstream_low_rank(kBfloat16, x, added.a, added.b, y[i], linears[i].inputs(), outputs,
                            added.num_groups, added.ranks, added.ends, added.rows, step.threads,
                            step.instructions);
    }
}

// Queries or keys: normalised, where the layer does that, and turned. What is in `x` is lost;
// returns where they are, which is `x` or `spare`.
Bfloat16* turned(const Layer& layer, const float* scale, const Rotation& rotation, int64_t num_rows,
                 int64_t heads, Bfloat16* x, Bfloat16* spare) {
    const int64_t width = layer.head_width;
    if (scale) {
        hyprstream_rms_norm(kBfloat16, x, scale, layer.eps, num_rows * heads, width, spare);
        std::swap(x, spare);
    }
    hyprstream_rotate(kBfloat16, x, rotation.cosines, rotation.sines, num_rows, heads, width,
                      rotation.turned, spare);
    return spare;
}

void copy_rows(const Bfloat16* rows, const int64_t* places, int64_t num_rows, int64_t width,
               void* kept) {
    Bfloat16* to = static_cast<Bfloat16*>(kept);
    for (int64_t row = 0; row < num_rows; ++row)
        std::memcpy(to + places[row] * width, rows + row * width, width * sizeof(Bfloat16));
}

void keep(const Layer& layer, const Bfloat16* k, const Bfloat16* v, const Step& step, void* keys,
          void* values) {
    const int64_t* places = step.reads.places;
    if (step.reads.in_codes) {
        hyprstream_keep_codes(kBfloat16, k, v, places, step.num_rows, layer.kv_heads,
                              layer.head_width, keys, values);
        return;
    }
    const int64_t width = layer.kv_heads * layer.head_width;
    copy_rows(k, places, step.num_rows, width, keys);
    copy_rows(v, places, step.num_rows, width, values);
}

void attend(const Layer& layer, const void* keys, const void* values, const Step& step,
            const Bfloat16* q, Bfloat16* mixed) {
    const Reads& reads = step.reads;
    const int64_t size = layer.heads * layer.head_width;
    int64_t positions = 0;
    for (int64_t row = 0; row < step.num_rows; ++row) positions += reads.ends[row];
    const int64_t mean = positions / step.num_rows + 1;
    const auto some = [&](int64_t begin, int64_t end) {
        const Bfloat16* from = q + begin * size;
        Bfloat16* to = mixed + begin * size;
        const int32_t *ends = reads.ends + begin, *tables = reads.tables + begin;
        if (reads.in_codes)
            hyprstream_attend_codes(kBfloat16, step.instructions, from, keys, values, to,
                                    end - begin, ends, tables, reads.blocks, layer.heads,
                                    layer.kv_heads, layer.head_width, reads.block_tokens,
                                    layer.window, layer.scale, layer.softcap);
        else
            hyprstream_attend(kBfloat16, from, keys, values, to, end - begin, ends, tables,
                              reads.blocks, layer.heads, layer.kv_heads, layer.head_width,
                              reads.block_tokens, layer.window, layer.scale, layer.softcap);
    };
    parallel(step.threads, step.num_rows, (kPositionsOfPiece + mean - 1) / mean, some);
}

void attention_part(const Layer& layer, int64_t index, const LowRank* adapters, const Step& step,
                    Scratch& scratch, Bfloat16* x) {
    const int64_t rows = step.num_rows, width = layer.linears[kQ].inputs();
    const int64_t queries = layer.heads * layer.head_width;
    const int64_t kept = layer.kv_heads * layer.head_width;
    Bfloat16* normed = scratch.at(Scratch::kNormed, rows * width);
    Bfloat16* const qkv[] = {scratch.at(Scratch::kQueries, rows * queries),
                             scratch.at(Scratch::kKeys, rows * kept),
                             scratch.at(Scratch::kValues, rows * kept)};
    Bfloat16* const spare_q = scratch.at(Scratch::kMoreQueries, rows * queries);
    Bfloat16* const spare_k = scratch.at(Scratch::kMoreKeys, rows * kept);
    hyprstream_rms_norm(kBfloat16, x, layer.norm, layer.eps, rows, width, normed);
    apply(layer, adapters, step, normed, kQ, 3, qkv);
    const Rotation& rotation = step.rotations[layer.rope];
    const Bfloat16* q =
        turned(layer, layer.q_norm, rotation, rows, layer.heads, qkv[0], spare_q);
    const Bfloat16* k =
        turned(layer, layer.k_norm, rotation, rows, layer.kv_heads, qkv[1], spare_k);
    const Reads& reads = step.reads;
    keep(layer, k, qkv[2], step, reads.keys[index], reads.values[index]);
    Bfloat16* mixed = q == spare_q ? qkv[0] : spare_q;
    attend(layer, reads.keys[index], reads.values[index], step, q, mixed);
    Bfloat16* const out[] = {normed};
    apply(layer, adapters, step, mixed, kO, 1, out);
    add_rows(normed, rows * width, x);
}

void mlp_part(const Layer& layer, const LowRank* adapters, const Step& step, Scratch& scratch,
              Bfloat16* x) {
    const int64_t rows = step.num_rows, width = layer.linears[kGate].inputs();
    const int64_t inner = rows * layer.linears[kGate].outputs();
    Bfloat16* normed = scratch.at(Scratch::kNormed, rows * width);
    Bfloat16* const both[] = {scratch.at(Scratch::kQueries, inner),
                              scratch.at(Scratch::kKeys, inner)};
    Bfloat16* const gated = scratch.at(Scratch::kMoreQueries, inner);
    hyprstream_rms_norm(kBfloat16, x, layer.mlp_norm, layer.eps, rows, width, normed);
    apply(layer, adapters, step, normed, kGate, 2, both);
    hyprstream_gate(kBfloat16, both[0], both[1], inner, gated);
    Bfloat16* const out[] = {normed};
    apply(layer, adapters, step, gated, kDown, 1, out);
    add_rows(normed, rows * width, x);
}

}  // namespace

extern "C" {

// x = the layers applied to x, num_rows x width in bfloat16; new keys and values are kept.
//
// rotations: by number, as layers name them. adapters: seven a layer, or null for none.
// `instructions`: which, of those that the processor has.
void hyprstream_layers(const Layer* layers, int64_t num_layers, const LowRank* adapters,
                       const Rotation* rotations, const Reads* reads, int64_t num_rows,
                       int64_t threads, int64_t instructions, void* x) {
    thread_local Scratch scratch;
    const Step step{rotations, *reads, num_rows, threads, instructions};
    Bfloat16* rows = static_cast<Bfloat16*>(x);
    for (int64_t i = 0; i < num_layers; ++i) {
        const LowRank* added = adapters ? adapters + i * kPlaces : nullptr;
        attention_part(layers[i], i, added, step, scratch, rows);
        mlp_part(layers[i], added, step, scratch, rows);
    }
}
}
