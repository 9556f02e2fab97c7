// What csrc/cuda/*.cu do with tensors, for plain pointers: tests/cuda_kernel_cases.py calls it.
#include "backward.cuh"
#include "forward.cuh"

using namespace ddetr;

extern "C" {

struct Call {
  int64_t images, positions, queries, heads, channels, samples, levels;
  int64_t image_stride, row_stride, head_stride;  // Of value, in elements.
  const int64_t *shapes, *points;                 // (L, 2) and (L,).
  const void *value, *references, *inputs, *weights, *grad_output;
  void *output, *grad_value, *grad_inputs, *grad_weights, *grad_references;
  int64_t fused, reference_size, shapes_on_device, deterministic, multiprocessors, seed;
  int64_t type, input_type;  // 0: double, 1: float, 2: half, 3: bfloat16.
};

}  // extern "C"

namespace {

Problem make_problem(const Call& call, int element_size) {
  Problem problem = {};
  problem.images = call.images;
  problem.positions = call.positions;
  problem.queries = call.queries;
  problem.heads = call.heads;
  problem.channels = call.channels;
  problem.samples = call.samples;
  problem.image_stride = call.image_stride;
  problem.head_stride = call.head_stride;
  problem.row_bytes = call.row_stride * element_size;
  problem.multiprocessors = call.multiprocessors;
  problem.levels.count = call.levels;
  problem.levels.shapes = call.shapes_on_device ? call.shapes : nullptr;
  int start = 0;
  for (int l = 0; l < call.levels; ++l) {
    Level& level = problem.levels.level[l];
    level.points = call.points[l];
    if (!call.shapes_on_device) {
      level.height = call.shapes[2 * l];
      level.width = call.shapes[2 * l + 1];
      level.start = start;
      start += level.height * level.width;
    }
  }
  return problem;
}

template <typename T, typename Sum, typename Source>
void run_backward(const Call& call, const Problem& problem, const Source& source) {
  using C = Compute<T>;
  using Item = typename Sum::Item;
  using Input = typename Source::Input;
  BackwardParams<T, Source, Sum> params = {};
  params.problem = problem;
  params.source = source;
  params.value = static_cast<const T*>(call.value);
  params.grad_output = static_cast<const T*>(call.grad_output);
  params.grad_points = static_cast<Input*>(call.grad_inputs);
  params.grad_weights = static_cast<Input*>(call.grad_weights);
  // Aligned like the memory of a GPU tensor.
  std::vector<int4> sums, references;
  double bounds[2] = {};
  if (call.grad_value != nullptr) {
    const int64_t values = call.images * call.positions * call.heads * call.channels;
    sums.assign(values * sizeof(Item) / sizeof(int4) + 1, int4{0, 0, 0, 0});
    params.grad_value = std::is_same_v<Item, T> ? static_cast<Item*>(call.grad_value)
                                                : reinterpret_cast<Item*>(sums.data());
  }
  if (call.grad_references != nullptr) {
    const int64_t parts = call.images * call.queries * call.heads * call.levels * 4;
    references.assign(parts * sizeof(C) / sizeof(int4) + 1, int4{-1, -1, -1, -1});
    params.grad_references = reinterpret_cast<C*>(references.data());
  }
  params.bounds = std::is_same_v<Sum, FixedSum> ? bounds : nullptr;
  backward(params, static_cast<T*>(call.grad_value), static_cast<C*>(call.grad_references), 0);
}

template <typename T, typename Source>
void run(const Call& call, const Source& source) {
  const Problem problem = make_problem(call, sizeof(T));
  if (call.output != nullptr) {
    ForwardParams<T, Source> params = {problem, source, static_cast<const T*>(call.value),
                                       static_cast<T*>(call.output), false};
    forward(params, 0);
  } else if (call.deterministic) {
    run_backward<T, FixedSum>(call, problem, source);
  } else {
    run_backward<T, FloatSum<Compute<T>>>(call, problem, source);
  }
}

template <typename T>
void run(const Call& call) {
  using C = Compute<T>;
  if (!call.fused) {
    run<T>(call, Locations<C>{static_cast<const C*>(call.inputs),
                              static_cast<const C*>(call.weights)});
    return;
  }
  const auto references = static_cast<const C*>(call.references);
  const int size = static_cast<int>(call.reference_size);
  if (call.input_type == call.type) {
    run<T>(call, References<C, T>{static_cast<const T*>(call.inputs),
                                  static_cast<const T*>(call.weights), references, size});
  } else {
    run<T>(call, References<C, C>{static_cast<const C*>(call.inputs),
                                  static_cast<const C*>(call.weights), references, size});
  }
}

}  // namespace

// Runs forward where `output` is given and backward where it is not; returns the condition of a
// device-side assertion that failed, or null.
extern "C" const char* ms_deform_attn_emulated(const Call* call) {
  emulation::machine.seed = static_cast<uint32_t>(call->seed);
  emulation::machine.failure = nullptr;
  switch (call->type) {
    case 0:
      run<double>(*call);
      break;
    case 1:
      run<float>(*call);
      break;
    case 2:
      run<__half>(*call);
      break;
    default:
      run<__nv_bfloat16>(*call);
  }
  return emulation::machine.failure;
}
