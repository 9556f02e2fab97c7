// The CPU kernels of the operators that detectron2_ddetr/modeling/ops/schemas.py defines. Stable
// ABI only, so that one binary serves many versions of torch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "chosen_kernels.h"
#include "dtype.h"

namespace ddetr {
namespace {

// Calls f(first, last) on parts of [0, count). Threads take parts as they become free, so that none
// waits for one that another program has slowed down; who takes what changes no result.
template <class F>
void for_parts(int64_t count, int64_t part, const F& f) {
  std::atomic<int64_t> next{0};
  std::atomic<bool> out_of_memory{false};  // an exception must not leave the thread it is in
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), (count + part - 1) / part);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    try {
      for (int64_t first; (first = next.fetch_add(part)) < count;)
        f(first, std::min(first + part, count));
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
  });
  STD_TORCH_CHECK(!out_of_memory, "ms_deform_attn: not enough memory for its temporary maps");
}

void zero(void* memory, int64_t bytes) {
  if (bytes > 0) std::memset(memory, 0, bytes);
}

// Large enough that what a kernel prepares once does not count.
constexpr int64_t kPairsPerPart = 512, kQueriesPerPart = 32, kPositionsPerPart = 1024;

// A problem that has been checked, together with what its pointers point to.
struct Call {
  const Kernels& kernels = chosen_kernels();
  Tensor value, points, weights;
  std::vector<Level> levels;
  Problem problem{};

  Call(const Tensor& value_, const Sizes& shapes, const Sizes& level_points,
       const Tensor& points_, const Tensor& weights_)
      : value(value_.stride(3) == 1 || value_.size(3) == 1 ? value_
                                                           : torch::stable::contiguous(value_)),
        points(torch::stable::contiguous(points_)),
        weights(torch::stable::contiguous(weights_)) {
    int64_t start = 0, sample = 0;
    for (size_t l = 0; l < level_points.size(); ++l) {
      levels.push_back({shapes[2 * l], shapes[2 * l + 1], start, level_points[l], sample});
      start += shapes[2 * l] * shapes[2 * l + 1];
      sample += level_points[l];
    }
    problem.images = value.size(0), problem.positions = value.size(1);
    problem.heads = value.size(2), problem.channels = value.size(3);
    problem.queries = points.size(1), problem.samples = sample;
    problem.levels = levels.size(), problem.level = levels.data();
    problem.value_type = dtype_of(value), problem.point_type = dtype_of(points);
    problem.value = value.const_data_ptr();
    for (int i = 0; i < 3; ++i) problem.value_strides[i] = stride(value, i);
    problem.points = points.const_data_ptr(), problem.weights = weights.const_data_ptr();
  }

  Call(Call&&) = default;  // and no copy: problem.level points into levels

  int64_t queries() const { return problem.images * problem.queries; }
  Tensor sums(std::vector<int64_t> sizes) const {
    return torch::stable::new_empty(value, sizes, sum_type(value));
  }

  Tensor forward() const {
    const Problem& p = problem;
    Tensor output =
        torch::stable::new_empty(value, {p.images, p.queries, p.heads * p.channels});
    if (output.numel() == 0) return output;
    char* const out = static_cast<char*>(output.mutable_data_ptr());
    const int64_t head_elements = (p.positions + 1) * p.channels;  // as 32 bits in what follows
    if (p.heads == 1 || p.queries * p.samples < p.positions || head_elements > INT32_MAX) {
      for_parts(queries(), kQueriesPerPart, [&](int64_t first, int64_t last) {
        kernels.forward(p, out, first, last, 0, p.heads);
      });
      return output;
    }
    // Many samples: head by head, from a copy. What the queries of a row and the next read of one
    // head fits into the cache of a core; of all heads, or with the others between, it would not.
    const int64_t row = p.channels * value.element_size();
    Tensor head_map = torch::stable::new_empty(value, {p.positions + 1, p.channels});
    char* const map = static_cast<char*>(head_map.mutable_data_ptr());
    zero(map + p.positions * row, row);
    Problem one = p;
    one.value = map, one.outside = p.positions * p.channels;
    one.value_strides[0] = one.value_strides[2] = 0, one.value_strides[1] = p.channels;
    for (int64_t image = 0; image < p.images; ++image) {
      for (int64_t head = 0; head < p.heads; ++head) {
        const char* from = static_cast<const char*>(p.value) +
                           (image * p.value_strides[0] + head * p.value_strides[2]) *
                               value.element_size();
        for_parts(p.positions, kPositionsPerPart, [&](int64_t first, int64_t last) {
          for (int64_t i = first; i < last; ++i)
            std::memcpy(map + i * row, from + i * p.value_strides[1] * value.element_size(), row);
        });
        for_parts(p.queries, kPairsPerPart, [&](int64_t first, int64_t last) {
          const int64_t query = image * p.queries;
          kernels.forward(one, out, query + first, query + last, head, head + 1);
        });
      }
    }
    return output;
  }

  void backward(const Gradients& grads) const {
    const Problem& p = problem;
    if (value.numel() == 0 || points.numel() == 0) {  // nothing is read
      const int64_t sum_size = p.value_type == Dtype::kDouble ? sizeof(double) : sizeof(float);
      zero(grads.value, value.numel() * value.element_size());
      zero(grads.sample_points, points.numel() * sum_size);
      zero(grads.sample_attention, weights.numel() * sum_size);
      return;
    }
    const int64_t owners = p.images * p.heads, threads = torch::stable::get_num_threads();
    // All levels at once read and write whole lines of memory; more threads need more tasks.
    const int64_t group = owners >= 2 * threads ? p.levels : 1;
    const int64_t groups = group == 1 ? p.levels : 1;
    for_parts(owners * groups, 1, [&](int64_t task, int64_t) {
      const int64_t owner = task % owners, first = task / owners;  // large levels come first
      kernels.backward(p, grads, owner / p.heads, owner % p.heads, first, first + group);
    });
  }
};

Call plain_call(const Tensor& value, const Tensor& spatial_shapes,
                const Tensor& sampling_locations, const Tensor& attention_weights) {
  check_plain(value, spatial_shapes, sampling_locations, attention_weights);
  const Tensor shapes = torch::stable::contiguous(spatial_shapes);
  const int64_t* first = shapes.const_data_ptr<int64_t>();
  const Sizes sizes(first, first + shapes.numel());
  check_levels(value, sizes);
  return Call(value, sizes, Sizes(shapes.size(0), sampling_locations.size(4)),
              sampling_locations, attention_weights);
}

Tensor nothing(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

Tensor ms_deform_attn(const Tensor& value, const Tensor& spatial_shapes,
                      const Tensor& sampling_locations, const Tensor& attention_weights) {
  return plain_call(value, spatial_shapes, sampling_locations, attention_weights).forward();
}

std::tuple<Tensor, Tensor, Tensor> ms_deform_attn_backward(
    const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
    const Tensor& sampling_locations, const Tensor& attention_weights, bool needs_value,
    bool needs_locations, bool needs_weights, bool /*always deterministic*/) {
  const Call call = plain_call(value, spatial_shapes, sampling_locations, attention_weights);
  check_grad_output(grad_output, value, sampling_locations);
  const Problem& p = call.problem;
  const Tensor output = torch::stable::contiguous(grad_output);
  Tensor grad_value =
      torch::stable::new_empty(value, {p.images, p.positions, p.heads, p.channels});
  Tensor grad_locations = call.sums({p.images, p.queries, p.heads, p.samples, 2});
  Tensor grad_weights = call.sums({p.images, p.queries, p.heads, p.samples});
  Gradients grads{};
  grads.output = output.const_data_ptr();
  grads.value = grad_value.mutable_data_ptr();
  grads.sample_points = grad_locations.mutable_data_ptr();
  grads.sample_attention = grad_weights.mutable_data_ptr();
  call.backward(grads);
  const auto shaped = [](const Tensor& t, const Tensor& as) {
    return torch::stable::view(t, as.sizes());
  };
  return {needs_value ? grad_value : nothing(value),
          needs_locations ? shaped(grad_locations, sampling_locations) : nothing(grad_locations),
          needs_weights ? shaped(grad_weights, attention_weights) : nothing(grad_weights)};
}

// `references` are reference_points, contiguous, which must outlive the call.
Call fused_call(const Tensor& value, const Sizes& level_shapes, const Sizes& level_points,
                const Tensor& references, const Tensor& sampling_offsets,
                const Tensor& attention_logits) {
  Call call(value, level_shapes, level_points, sampling_offsets, attention_logits);
  call.problem.references = references.const_data_ptr();
  call.problem.reference_size = references.size(3);
  return call;
}

Tensor ms_deform_attn_fused(const Tensor& value, std::vector<int64_t> level_shapes,
                            std::vector<int64_t> level_points, const Tensor& reference_points,
                            const Tensor& sampling_offsets, const Tensor& attention_logits) {
  check_fused(value, level_shapes, level_points, reference_points, sampling_offsets,
              attention_logits);
  const Tensor references = torch::stable::contiguous(reference_points);
  return fused_call(value, level_shapes, level_points, references, sampling_offsets,
                    attention_logits)
      .forward();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> ms_deform_attn_fused_backward(
    const Tensor& grad_output, const Tensor& value, std::vector<int64_t> level_shapes,
    std::vector<int64_t> level_points, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, bool needs_value,
    bool needs_references, bool needs_offsets, bool needs_logits, bool /*always deterministic*/) {
  check_fused(value, level_shapes, level_points, reference_points, sampling_offsets,
              attention_logits);
  check_grad_output(grad_output, value, sampling_offsets);
  const Tensor references = torch::stable::contiguous(reference_points);
  const Call call = fused_call(value, level_shapes, level_points, references, sampling_offsets,
                               attention_logits);
  const Problem& p = call.problem;
  const Tensor output = torch::stable::contiguous(grad_output);
  const std::vector<int64_t> offset_sizes = {p.images, p.queries, p.heads, p.samples, 2};
  const std::vector<int64_t> logit_sizes = {p.images, p.queries, p.heads, p.samples};
  Tensor grad_value =
      torch::stable::new_empty(value, {p.images, p.positions, p.heads, p.channels});
  Tensor grad_offsets = torch::stable::new_empty(sampling_offsets, offset_sizes);
  Tensor grad_logits = torch::stable::new_empty(attention_logits, logit_sizes);
  Tensor grad_references = needs_references
                               ? torch::stable::new_empty(references, references.sizes())
                               : nothing(references);
  // In 16 bits sums need memory of their own; otherwise results overwrite them.
  const bool same = sampling_offsets.scalar_type() == sum_type(value);
  const Tensor sample_points = same ? grad_offsets : call.sums(offset_sizes);
  const Tensor sample_attention = same ? grad_logits : call.sums(logit_sizes);
  Gradients grads{};
  grads.output = output.const_data_ptr();
  grads.value = grad_value.mutable_data_ptr();
  grads.sample_points = sample_points.mutable_data_ptr();
  grads.sample_attention = sample_attention.mutable_data_ptr();
  grads.points = grad_offsets.mutable_data_ptr();
  grads.logits = grad_logits.mutable_data_ptr();
  grads.references = needs_references ? grad_references.mutable_data_ptr() : nullptr;
  call.backward(grads);
  const bool is_empty = call.points.numel() == 0 && references.numel() == 0;
  const int64_t queries = is_empty ? 0 : call.queries();
  for_parts(queries, kQueriesPerPart, [&](int64_t first, int64_t last) {
    call.kernels.finish(p, grads, first, last);
  });
  return {needs_value ? grad_value : nothing(value), grad_references,
          needs_offsets ? grad_offsets : nothing(sampling_offsets),
          needs_logits ? grad_logits : nothing(attention_logits)};
}

}  // namespace
}  // namespace ddetr

STABLE_TORCH_LIBRARY_IMPL(detectron2_ddetr, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&ddetr::ms_deform_attn));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&ddetr::ms_deform_attn_backward));
  m.impl("ms_deform_attn_fused", TORCH_BOX(&ddetr::ms_deform_attn_fused));
  m.impl("ms_deform_attn_fused_backward", TORCH_BOX(&ddetr::ms_deform_attn_fused_backward));
}
