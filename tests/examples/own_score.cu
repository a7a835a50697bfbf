// The kernels of own_score.h's score for the GPU.
#include "own_score.h"

#include "kernels/cuda_score.h"

HEED_CUDA_SCORE(Cauchy)
