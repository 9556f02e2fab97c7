// Starting kernels on a stream.
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

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, int64_t shared_bytes,
            Stream stream, Arguments... arguments) {
  kernel<<<blocks, threads, static_cast<size_t>(shared_bytes), stream>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace ddetr

#endif  // __CUDACC__
