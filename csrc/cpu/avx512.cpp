// The kernels for AVX-512 (F, BW, DQ, VL). Only what is between the pragmas is compiled for it:
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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,popcnt"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,popcnt")
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC's own headers, its bug 105593
#endif
#define DDETR_VECTOR_BYTES 64
#include "kernels.h"
namespace ddetr {
const Kernels avx512_kernels = {"avx512", run_forward, run_backward, run_finish,
                                run_bernoulli, run_skip_draws, run_scale_kept, run_scale_passed,
                                run_add_norm, run_add_norm_backward};
}
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
