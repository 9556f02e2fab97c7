// The kernels for AVX2, FMA and F16C. Only what is between the pragmas is compiled for it:
// headers of others come first, since their inline functions are shared with other files.
#if defined(__x86_64__)
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>
#include <new>
#include <type_traits>

#include "problem.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi,bmi2,popcnt")
#endif
#define DDETR_VECTOR_BYTES 32
#include "kernels.h"
namespace ddetr {
const Kernels avx2_kernels = {"avx2", run_forward, run_backward, run_finish,
                              run_bernoulli, run_skip_draws, run_scale_kept, run_scale_passed,
                              run_add_norm, run_add_norm_backward};
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
