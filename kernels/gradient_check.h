// For authors of scores: a score's gradients against central differences, in double.
#pragma once

#include "kernels/score.h"

namespace heed {

// The largest error of the gradients of q, k, e, a and p in a small operator of that score, with edge features and
// without, relative to the largest of each. About 1e-9 where they are right; a gradient at a kink is no mistake, and no
// random point lies on one.
double gradient_error(const Score& score);

}  // namespace heed
