#include "chosen_kernels.h"

#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace ddetr {
namespace {

const Kernels& choose_kernels() {
  std::vector<const Kernels*> usable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    usable.push_back(&avx512_kernels);
  if (avx2) usable.push_back(&avx2_kernels);
#endif
  usable.push_back(&portable_kernels);
  const char* wanted = std::getenv("DDETR_CPU_KERNELS");
  if (!wanted || !*wanted) return *usable.front();
  for (const Kernels* kernels : usable)
    if (!std::strcmp(kernels->name, wanted)) return *kernels;
  STD_TORCH_CHECK(false, "DDETR_CPU_KERNELS is '", wanted,
                  "', which is not among the kernels that run on this processor: avx512, avx2 or "
                  "portable, as far as it has them");
}

std::string cpu_kernels() { return chosen_kernels().name; }

}  // namespace

const Kernels& chosen_kernels() {
  static const Kernels& chosen = choose_kernels();
  return chosen;
}

}  // namespace ddetr

STABLE_TORCH_LIBRARY_IMPL(detectron2_ddetr, CompositeImplicitAutograd, m) {
  m.impl("cpu_kernels", TORCH_BOX(&ddetr::cpu_kernels));
}
