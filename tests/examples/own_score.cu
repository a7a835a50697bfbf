// The kernels of own_score.h's score for the GPU.
#include "kernels/cuda_score.h"
#include "tests/examples/own_score.h"

HEED_CUDA_SCORE(Cauchy)
