// The table of kernels of one instruction set; see avx512.cpp.
#pragma once

#include "add_norm.h"
#include "backward.h"
#include "bernoulli.h"
#include "forward.h"
#include "scale_kept.h"

namespace ddetr {
namespace {

// Calls `run(T, O)` with the types of values and points.
template <class T, class Run>
inline void with_point_type(const Problem& p, Run run) {
  if (p.point_type == p.value_type)
    run(T{}, T{});
  else
    run(T{}, Sum<T>{});
}

// Calls `run(T)`.
template <class Run>
inline void with_type(Dtype type, Run run) {
  switch (type) {
    case Dtype::kDouble: return run(double{});
    case Dtype::kFloat: return run(float{});
    case Dtype::kHalf: return run(Half{});
    case Dtype::kBFloat16: return run(BFloat16{});
  }
}

template <class Run>
inline void with_types(const Problem& p, Run run) {
  with_type(p.value_type, [&](auto t) { with_point_type<decltype(t)>(p, run); });
}

void run_forward(const Problem& p, void* output, int64_t first_query, int64_t last_query,
                 int64_t first_head, int64_t last_head) {
  with_types(p, [&](auto t, auto o) {
    forward<decltype(t), decltype(o)>(p, output, first_query, last_query, first_head, last_head);
  });
}

void run_backward(const Problem& p, const Gradients& grads, int64_t image, int64_t head,
                  int64_t first_level, int64_t last_level) {
  with_types(p, [&](auto t, auto o) {
    backward<decltype(t), decltype(o)>(p, grads, image, head, first_level, last_level);
  });
}

void run_finish(const Problem& p, const Gradients& grads, int64_t first, int64_t last) {
  with_types(p, [&](auto t, auto o) { finish<decltype(t), decltype(o)>(p, grads, first, last); });
}

void run_scale_kept(Dtype type, const void* x, const bool* kept, double scale, bool of_relu,
                    void* result, int64_t first, int64_t last) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    const auto run = of_relu ? scale_kept<true, T> : scale_kept<false, T>;
    run(static_cast<const T*>(x) + first, kept + first, static_cast<Sum<T>>(scale),
        static_cast<T*>(result) + first, last - first);
  });
}

void run_scale_passed(Dtype type, const void* grad, const void* of, double scale, void* result,
                      int64_t first, int64_t last) {
  with_type(type, [&](auto t) {
    using T = decltype(t);
    scale_passed(static_cast<const T*>(grad) + first, static_cast<const T*>(of) + first,
                 static_cast<Sum<T>>(scale), static_cast<T*>(result) + first, last - first);
  });
}

void run_add_norm(Dtype type, const AddNorm& p, int64_t first, int64_t last) {
  with_type(type, [&](auto t) { add_norm<decltype(t)>(p, first, last); });
}

void run_add_norm_backward(Dtype type, const AddNormGradients& p, int64_t first, int64_t last,
                           void* of_weight, void* of_bias) {
  with_type(type, [&](auto t) {
    using C = Sum<decltype(t)>;
    add_norm_backward<decltype(t)>(p, first, last, static_cast<C*>(of_weight),
                                   static_cast<C*>(of_bias));
  });
}

}  // namespace
}  // namespace ddetr
