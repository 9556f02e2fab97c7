// What the kernels compute, as plain data: the only thing that the files for the instruction sets
// share with the rest. Names of sizes: N images, S positions of all levels, Q queries, M heads,
// D channels per head, L levels, P points of a level, K = sum of P.
#pragma once

#include <cstdint>

namespace ddetr {

enum class Dtype { kDouble, kFloat, kHalf, kBFloat16 };

struct Level {
  int64_t height, width;
  int64_t start;         // first of its positions
  int64_t points;        // P
  int64_t first_sample;  // of its points among K
};

struct Problem {
  int64_t images, positions, queries, heads, channels, levels, samples;  // N S Q M D L K
  const Level* level;                                                    // L

  // C below is the type of coordinates and sums: double for double values, otherwise float.
  Dtype value_type;  // T
  Dtype point_type;  // O: of points and logits, T or C

  const void* value;         // T, (N, S, M, D)
  int64_t value_strides[3];  // of N, S and M, in elements; that of D is one
  // Forward: a position that reads zeros, if there is one; then positions are those of elements.
  int64_t outside = -1;

  // A sample is read at pixel  point * step + base  of its level, in x and in y.
  // Without references, points are locations in [0, 1]: step = size, base = -1/2.
  // With them, points are offsets: step and base follow from the reference of query and level.
  const void* points;      // O, (N, Q, M, K, 2), (x, y)
  const void* references;  // C, (N, Q, L, R), (x, y) or (cx, cy, w, h), or null
  int64_t reference_size;  // R: 2 or 4

  const void* weights;  // without references: C, (N, Q, M, K); with them: logits, O, same shape
};

struct Gradients {
  const void* output;      // T, (N, Q, M, D), contiguous: what comes in
  void* value;             // T, (N, S, M, D), contiguous; written completely
  void* sample_points;     // C, (N, Q, M, K, 2): by location; with references by pixel
  void* sample_attention;  // C, (N, Q, M, K)
  void* points;            // O, (N, Q, M, K, 2), with references only; may be sample_points
  void* logits;            // O, (N, Q, M, K), with references only; may be sample_attention
  void* references;        // C, (N, Q, L, R), or null
};

// The state of PyTorch's generator on CPUs.
constexpr int kTwisterWords = 624;
struct Twister {
  uint32_t word[kTwisterWords];
  int next;  // of the words, that is drawn; all of them are used up at kTwisterWords
};

// Rows of `channels` numbers, one after another; `factor`, of a row, `weight` and `bias` have the
// type of sums. `kept` is null where all of `update` is, as it is; `normalized` and `factor` are null
// where no gradient is asked for.
struct AddNorm {
  int64_t channels;
  const void *x, *update;
  const bool* kept;
  double scale, eps;
  const void *weight, *bias;
  void *result, *normalized, *factor;
};

struct AddNormGradients {
  int64_t channels;
  const void *grad, *normalized, *factor, *weight;
  const bool* kept;
  double scale;
  void *of_x, *of_update;  // which is not written where all is kept: it is the same
};

// One table per instruction set. Pairs are (N, Q, M) and queries (N, Q), flattened.
struct Kernels {
  const char* name;
  // The outputs of a range of queries, for a range of heads.
  void (*forward)(const Problem&, void* output, int64_t first_query, int64_t last_query,
                  int64_t first_head, int64_t last_head);
  // One image, head and range of levels owns its part of every gradient: there are no races, and
  // how levels are grouped changes no result.
  void (*backward)(const Problem&, const Gradients&, int64_t image, int64_t head,
                   int64_t first_level, int64_t last_level);
  // Gradients by pixel and probability -> by offset, logit and reference.
  void (*finish)(const Problem&, const Gradients&, int64_t first_query, int64_t last_query);
  // Whether each of `count` draws of 53 bits is below the threshold.
  void (*bernoulli)(Twister&, bool* result, int64_t count, uint64_t threshold);
  void (*skip_draws)(Twister&, int64_t count);
  // x * scale where kept, else 0, of elements first to last; the result may be x. `of_relu`: of its
  // ReLU.
  void (*scale_kept)(Dtype, const void* x, const bool* kept, double scale, bool of_relu,
                     void* result, int64_t first, int64_t last);
  // The gradient of that, of a ReLU: grad * scale but where `of`, its result, is zero or less.
  void (*scale_passed)(Dtype, const void* grad, const void* of, double scale, void* result,
                       int64_t first, int64_t last);
  // Of rows first to last; the gradients of weight and bias are added up.
  void (*add_norm)(Dtype, const AddNorm&, int64_t first, int64_t last);
  void (*add_norm_backward)(Dtype, const AddNormGradients&, int64_t first, int64_t last,
                            void* of_weight, void* of_bias);
};

extern const Kernels portable_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

}  // namespace ddetr
