#pragma once

#include "problem.h"

namespace ddetr {

// The widest instruction set of this processor, or the one that DDETR_CPU_KERNELS names.
const Kernels& chosen_kernels();

}  // namespace ddetr
