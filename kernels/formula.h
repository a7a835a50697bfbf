// A score from a text, without a compiler at hand: parsed, differentiated symbolically, and run by an interpreter over
// vectors of channels inside the same fused operator (formula_stages.cpp).
//
//   score_formula("a*leaky(q+k+e, 0.2)")                     a sum over channels: the term
//   score_formula("p0 * sum(q*k) / sqrt(d)")                 sum(...) holds the term, the rest finishes its sum
//   score_formula("exp(-sum(square(q-k)) / (2*exp(p0:0.5)))")
//
//   formula := product {(+|-) product}      product := value {(*|/) value}
//   value   := -value | number | q | k | e | a | d | p0[:number] | function(formula) | (formula)
//
// q, k and e are the query's, the key's and the edge's channel (e is 0 where edges have no features), a a learned
// vector per head, p0, p1 and p2 learned scalars per head, which begin at 1 or at the number given, and d is the number
// of channels of a head. q, k, e and a stand inside the sum over channels, the learned scalars outside. Functions: exp,
// log, sqrt, tanh, erf, sigmoid, square, abs, relu and leaky(x, slope), with gradients at kinks as in fn.h. What the
// handle declares follows from the text; it is `nonnegative` where exp, square, abs and the like, their sums, products
// and quotients make it so. Formulas run on the CPU.
#pragma once

#include <string>

#include "kernels/score.h"

namespace heed {

// Throws Error with the column and what was expected there.
Score score_formula(const std::string& text);

}  // namespace heed
