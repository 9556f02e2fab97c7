// The kernels for every other processor, in vectors of 16 bytes: SSE2 on x86, NEON on Arm.
#define DDETR_VECTOR_BYTES 16
#include "kernels.h"

namespace ddetr {
const Kernels portable_kernels = {"portable", run_forward, run_backward, run_finish,
                                  run_bernoulli, run_skip_draws, run_scale_kept, run_scale_passed,
                                  run_add_norm, run_add_norm_backward};
}
