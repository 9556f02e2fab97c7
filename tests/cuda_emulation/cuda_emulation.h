// Enough of CUDA to run the kernels of csrc/cuda on one CPU thread, so that their logic can be
// tested where there is no GPU. Each CUDA thread is a fiber that runs until it has to wait for
// others. Barriers, shuffles, votes and shared memory mean what they mean on a GPU; what differs
// is speed, and that a barrier too few is only noticed where the order of threads (shuffled with
// `seed`) exposes it.
#pragma once

#include <math.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <type_traits>
#include <vector>

#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // Blocks run one after the other.

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

using std::max;
using std::min;

// ---- 16-bit numbers

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline float __half2float(__half number) {
  const int exponent = number.bits >> 10 & 31, mantissa = number.bits & 1023;
  float magnitude = exponent == 0    ? ldexpf(mantissa, -24)
                    : exponent < 31  ? ldexpf(1024 + mantissa, exponent - 25)
                    : mantissa == 0 ? INFINITY
                                     : NAN;
  return number.bits >> 15 ? -magnitude : magnitude;
}

inline __half __float2half_rn(float number) {
  const float magnitude = fabsf(number);
  int bits = 0x7e00;  // NaN
  if (magnitude >= 65520) {
    bits = 0x7c00;
  } else if (magnitude < 6.103515625e-05f) {
    bits = static_cast<int>(nearbyintf(ldexpf(magnitude, 24)));
  } else if (magnitude < 65520) {
    int exponent;
    const float mantissa = nearbyintf(ldexpf(frexpf(magnitude, &exponent), 11));
    bits = ((exponent + 14) << 10) + static_cast<int>(mantissa) - 1024;
  }
  return {static_cast<uint16_t>(bits | (signbit(number) ? 0x8000 : 0))};
}

inline float __uint_as_float(unsigned bits) {
  float number;
  memcpy(&number, &bits, 4);
  return number;
}

inline float __bfloat162float(__nv_bfloat16 number) {
  return __uint_as_float(static_cast<unsigned>(number.bits) << 16);
}

inline __nv_bfloat16 __float2bfloat16_rn(float number) {
  uint32_t bits;
  memcpy(&bits, &number, 4);
  if (isnan(number)) {
    return {0x7fc0};
  }
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// ---- Fibers

namespace emulation {

struct Barrier {
  int arrived = 0;
  uint64_t generation = 0;
};

enum Collective { kShuffle, kVote, kSyncWarp };

struct Warp {
  Barrier barrier;
  uint64_t slot[2][32];  // Alternately, so that no lane overwrites what another has yet to read.
  Collective kind[2][32];
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  uint64_t collectives;
  bool done;
};

constexpr size_t kStackBytes = 256 * 1024;

struct Machine {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<int4> shared;
  Barrier block;
  ucontext_t scheduler;
  std::function<void()> body;
  int current = 0;
  bool progress = false;
  uint32_t seed = 0;               // 0: in order.
  const char* failure = nullptr;  // Of a device-side assertion.
};

inline Machine machine;

[[noreturn]] inline void die(const char* message) {
  fprintf(stderr, "cuda emulation: block (%u, %u, %u), thread %d: %s\n", blockIdx.x, blockIdx.y,
          blockIdx.z, machine.current, message);
  abort();
}

inline void yield() {
  swapcontext(&machine.fibers[machine.current].context, &machine.scheduler);
}

inline void wait(Barrier& barrier, int expected) {
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    machine.progress = true;
    return;
  }
  for (const uint64_t generation = barrier.generation; barrier.generation == generation;) {
    yield();
  }
}

// Gives `bits` to the other lanes of the warp and returns what all of them gave.
inline const uint64_t* exchange(Collective kind, uint64_t bits) {
  Warp& warp = machine.warps[machine.current / 32];
  const int lane = machine.current % 32, turn = machine.fibers[machine.current].collectives++ % 2;
  warp.slot[turn][lane] = bits;
  warp.kind[turn][lane] = kind;
  wait(warp.barrier, 32);
  for (int other = 0; other < 32; ++other) {
    if (warp.kind[turn][other] != kind) {
      die("the lanes of a warp are in different collectives");
    }
  }
  return warp.slot[turn];
}

inline void fail(const char* condition) {
  machine.failure = condition;
  yield();
}

inline void enter() {
  machine.body();
  machine.fibers[machine.current].done = true;
  machine.progress = true;
  yield();
}

inline std::vector<int> order(int count) {
  std::vector<int> indices(count);
  std::iota(indices.begin(), indices.end(), 0);
  if (machine.seed != 0) {
    std::shuffle(indices.begin(), indices.end(), std::mt19937(machine.seed));
  }
  return indices;
}

inline void run_block(int threads) {
  if (threads % 32 != 0) {
    die("a block must have whole warps");
  }
  while (static_cast<int>(machine.fibers.size()) < threads) {
    machine.fibers.emplace_back();
    machine.fibers.back().stack.reset(new char[kStackBytes]);
  }
  machine.warps.assign(threads / 32, Warp());
  machine.block = Barrier();
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = machine.fibers[i];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    fiber.collectives = 0;
    fiber.done = false;
    makecontext(&fiber.context, enter, 0);
  }
  const std::vector<int> threads_in_order = order(threads);
  for (int alive = threads; alive > 0;) {
    machine.progress = false;
    for (int i : threads_in_order) {
      if (machine.fibers[i].done) {
        continue;
      }
      machine.current = i;
      threadIdx = dim3(i, 0, 0);
      swapcontext(&machine.scheduler, &machine.fibers[i].context);
      if (machine.failure != nullptr) {
        return;
      }
      alive -= machine.fibers[i].done;
    }
    if (!machine.progress) {
      die("all threads wait for threads that have returned or took another way");
    }
  }
}

template <typename T>
uint64_t to_bits(T number) {
  uint64_t bits = 0;
  memcpy(&bits, &number, sizeof(T));
  return bits;
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait(emulation::machine.block, blockDim.x); }
inline void __syncwarp() { emulation::exchange(emulation::kSyncWarp, 0); }

template <typename T>
T __shfl_xor_sync(unsigned mask, T number, int lane_mask) {
  if (mask != 0xffffffffu) {
    emulation::die("only whole warps are emulated");
  }
  const uint64_t* slot = emulation::exchange(emulation::kShuffle, emulation::to_bits(number));
  memcpy(&number, &slot[emulation::machine.current % 32 ^ lane_mask], sizeof(T));
  return number;
}

inline int __all_sync(unsigned, int predicate) {
  const uint64_t* slot = emulation::exchange(emulation::kVote, predicate != 0);
  return std::all_of(slot, slot + 32, [](uint64_t bits) { return bits != 0; });
}

#define CUDA_KERNEL_ASSERT(condition)  \
  do {                                 \
    if (!(condition)) {                \
      emulation::fail(#condition);     \
    }                                  \
  } while (0)

// ---- Memory and arithmetic

template <typename T>
void check_alignment(const T* address) {
  if (reinterpret_cast<uintptr_t>(address) % alignof(T) != 0) {
    emulation::die("misaligned access");
  }
}

template <typename T>
T __ldg(const T* source) {
  check_alignment(source);
  return *source;
}

template <typename T>
void atomicAdd(T* target, T number) {
  check_alignment(target);
  if constexpr (std::is_same_v<T, float4>) {
    *target = {target->x + number.x, target->y + number.y, target->z + number.z,
               target->w + number.w};
  } else {
    *target += number;
  }
}

template <typename T>
void atomicMax(T* target, T number) {
  *target = std::max(*target, number);
}

inline long long __double2ll_rn(double number) { return llrint(number); }
inline long long __double_as_longlong(double number) { return emulation::to_bits(number); }

namespace ddetr {

using Stream = int;

constexpr int64_t kMaxGridZ = 5;  // Not 65535, so that a test can exceed it.

inline void* dynamic_shared_memory() { return emulation::machine.shared.data(); }

inline int64_t multiply_wide(int a, int b) { return static_cast<int64_t>(a) * b; }

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 blocks, int threads, int64_t shared_bytes, Stream,
            Arguments... arguments) {
  using emulation::machine;
  if (threads > 1024 || shared_bytes > 48 * 1024 || blocks.y > 65535 || blocks.z > kMaxGridZ ||
      blocks.x == 0 || blocks.y == 0 || blocks.z == 0) {
    emulation::die("invalid launch");
  }
  gridDim = blocks;
  blockDim = dim3(threads);
  machine.body = [&] { kernel(Parameters(arguments)...); };
  for (int i : emulation::order(blocks.x * blocks.y * blocks.z)) {
    if (machine.failure != nullptr) {
      return;
    }
    blockIdx = dim3(i % blocks.x, i / blocks.x % blocks.y, i / blocks.x / blocks.y);
    // Not zeros: what a kernel did not write must not look like something.
    machine.shared.assign(shared_bytes / sizeof(int4) + 1, int4{-1, -1, -1, -1});
    emulation::run_block(threads);
  }
}

}  // namespace ddetr
