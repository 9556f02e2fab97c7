// What C++ does not have: starting kernels, and two things inside of them.
#pragma once

#ifndef __CUDACC__
#include "cuda_emulation.h"  // The tests run the kernels on the CPU.
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/macros/Macros.h>

#include <cstdint>
#include <stdexcept>

namespace ddetr {

using Stream = cudaStream_t;

constexpr int64_t kMaxGridZ = 65535;

__device__ inline void* dynamic_shared_memory() {
  extern __shared__ uint4 memory[];
  return memory;
}

// a * b as one instruction, to which the compiler then adds the sum with an address. Written in C++
// it becomes a product of 64-bit numbers once the widening of b has been moved out of a loop.
__device__ inline int64_t multiply_wide(int a, int b) {
  int64_t product;
  asm("mul.wide.s32 %0, %1, %2;" : "=l"(product) : "r"(a), "r"(b));
  return product;
}

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, int64_t shared_bytes,
            Stream stream, Arguments... arguments) {
  kernel<<<blocks, threads, static_cast<size_t>(shared_bytes), stream>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddetr

#endif  // __CUDACC__
