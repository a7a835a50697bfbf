// The score of own_score.cpp, for the CPU's compiler and for nvcc.
#pragma once

#include "kernels/fn.h"

struct Cauchy {  // s = -sum_c a_c log(1 + (q_c - k_c)^2): far channels count less than in a distance
  static constexpr const char* name = "cauchy";
  HEED_FN auto term(auto q, auto k, auto e, auto a) const {
    return -(a * heed::fn::log(heed::fn::square(q - (k + e)) + 1.0f));
  }
};
