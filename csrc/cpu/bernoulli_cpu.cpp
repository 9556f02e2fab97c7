// The operator that detectron2_ddetr/modeling/ops/bernoulli.py defines.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>

#include "chosen_kernels.h"

namespace ddetr {
namespace {

using torch::stable::Tensor;

// Where a state of torch.Generator holds what, in numbers of 64 bits: the seed; how many words are
// left, plus one, in the lower half; the next of the words; the words, each in a number of its own.
constexpr int64_t kLeft = 1, kNext = 2, kWords = 3;

constexpr int64_t kDrawsPerThread = 1 << 15;  // for fewer, another thread is not worth waking
constexpr int64_t kMaxThreads = 4;            // more have little to gain
constexpr double kDrawsForSkipped = 0.625;    // in the time that a draw takes longer than a skip

// Each thread goes through all draws before its own, of which it has the fewer the more these are,
// so that all end together: the numbers come one after another, and no thread can start amid them.
void draw(Twister& twister, bool* result, int64_t count, uint64_t threshold) {
  const int64_t useful = std::min(kMaxThreads, count / kDrawsPerThread);
  const int64_t threads =
      std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), useful));
  const double whole = 1 - std::pow(kDrawsForSkipped, threads);
  const auto start = [&](int64_t thread) {
    const double share = (1 - std::pow(kDrawsForSkipped, thread)) / whole;
    return thread == threads ? count : static_cast<int64_t>(count * share);
  };
  const Twister before = twister;
  torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    Twister own = before;
    chosen_kernels().skip_draws(own, start(first));
    chosen_kernels().bernoulli(own, result + start(first), start(last) - start(first), threshold);
    if (last == threads) twister = own;
  });
}

void bernoulli_(Tensor generator_state, Tensor result, double probability) {
  STD_TORCH_CHECK(generator_state.scalar_type() == torch::headeronly::ScalarType::Long &&
                      generator_state.is_contiguous() && generator_state.dim() == 1 &&
                      generator_state.numel() >= kWords + kTwisterWords,
                  "bernoulli_: generator_state must be torch.Generator.get_state() of a CPU's "
                  "generator as int64");
  STD_TORCH_CHECK(result.scalar_type() == torch::headeronly::ScalarType::Bool &&
                      result.is_contiguous(),
                  "bernoulli_: result must be bool and contiguous");
  STD_TORCH_CHECK(0 <= probability && probability <= 1, "bernoulli_: the probability is ",
                  probability, ", which is not in [0, 1]");
  if (result.numel() == 0) return;  // nor does the state of a new generator change then
  int64_t* const state = generator_state.mutable_data_ptr<int64_t>();
  const int64_t left = state[kLeft] & 0xffffffff;
  STD_TORCH_CHECK(1 <= left && left <= kTwisterWords,
                  "bernoulli_: generator_state is not one of a CPU's generator");
  Twister twister;
  for (int i = 0; i < kTwisterWords; ++i) twister.word[i] = state[kWords + i];
  twister.next = kTwisterWords - (left - 1);
  const uint64_t threshold = std::ceil(std::ldexp(probability, 53));
  draw(twister, result.mutable_data_ptr<bool>(), result.numel(), threshold);
  for (int i = 0; i < kTwisterWords; ++i) state[kWords + i] = twister.word[i];
  state[kLeft] += kTwisterWords - twister.next + 1 - left;
  state[kNext] = twister.next;
}

}  // namespace
}  // namespace ddetr

STABLE_TORCH_LIBRARY_IMPL(detectron2_ddetr, CPU, m) {
  m.impl("bernoulli_", TORCH_BOX(&ddetr::bernoulli_));
}
