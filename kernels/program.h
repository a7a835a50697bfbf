// A formula as straight lines of elementwise steps: what the parser makes (formula.cpp) and the interpreter runs
// (formula_stages.cpp).
#pragma once

#include <string>
#include <type_traits>
#include <vector>

#include "kernels/fn.h"

namespace heed::formula {

enum class Op {
  variable,  // number `a`
  width,     // channels of a head
  constant,  // c
  // Elementwise: of the values a and b.
  add,
  sub,
  mul,
  div,
  neg,
  exp,
  log,
  sqrt,
  tanh,
  erf,
  sigmoid,
  abs,
  relu,
  leaky,  // c is the slope below 0
  // Slopes, from which derivatives are made: of sqrt and the like from their value; of erf from x; of those with kinks
  // from x, times b.
  sqrt_slope,
  tanh_slope,
  sigmoid_slope,
  erf_slope,
  abs_slope,
  relu_slope,
  leaky_slope,
};

// Calls use(arity, f), where f(x, y, c) is the operation for numbers of any kind.
template <class Use>
decltype(auto) with_op(Op op, Use use) {
#define HEED_STEP(name, arity, expression)                                                 \
  case Op::name:                                                                           \
    return use(                                                                            \
        std::integral_constant<int, arity>{},                                              \
        []<class X>([[maybe_unused]] X x, [[maybe_unused]] X y, [[maybe_unused]] double c) \
            __attribute__((always_inline)) { return expression; });
  switch (op) {
    HEED_STEP(add, 2, x + y)
    HEED_STEP(sub, 2, x - y)
    HEED_STEP(mul, 2, x * y)
    HEED_STEP(div, 2, x / y)
    HEED_STEP(exp, 1, fn::exp(x))
    HEED_STEP(log, 1, fn::log(x))
    HEED_STEP(sqrt, 1, fn::sqrt(x))
    HEED_STEP(tanh, 1, fn::tanh(x))
    HEED_STEP(erf, 1, fn::erf(x))
    HEED_STEP(sigmoid, 1, fn::sigmoid(x))
    HEED_STEP(abs, 1, fn::abs(x))
    HEED_STEP(relu, 1, fn::relu(x))
    HEED_STEP(leaky, 1, fn::leaky(x, static_cast<float>(c)))
    HEED_STEP(sqrt_slope, 1, select(x > X(0), X(0.5f) / x, X(0)))
    HEED_STEP(tanh_slope, 1, X(1) - x * x)
    HEED_STEP(sigmoid_slope, 1, x * (X(1) - x))
    HEED_STEP(erf_slope, 1, X(1.1283791670955126) * exp_of(-(x * x)))
    HEED_STEP(abs_slope, 2, select(x > X(0), y, select(x < X(0), -y, X(0))))
    HEED_STEP(relu_slope, 2, select(x > X(0), y, X(0)))
    HEED_STEP(leaky_slope, 2, select(x > X(0), y, y * X(static_cast<float>(c))))
    default:
      HEED_STEP(neg, 1, -x)
  }
#undef HEED_STEP
}

// Values have places: first kVariables variables, then the program's fixed values, then its registers.
inline constexpr int kVariables = 4;

struct Step {
  Op op = Op::constant;
  int a = 0, b = 0;
  double c = 0;
  int to = 0;
};

struct Out {
  int place = -1;  // none: it is 0
  bool negative = false;
};

struct Program {
  std::vector<Step> fixed;  // numbers that are the same for all: constants, and what follows from the width
  std::vector<Step> steps;
  int registers = 0;
  std::vector<Out> outs;

  // The fixed numbers for heads of that width, into `to`.
  void fix(int width, double* to) const;
};

// The variables of a term are q, k, e and a; those of a finish the sum and the learned scalars.
struct Term {
  Program sum;          // the term, or two factors of it
  Program row, column;  // its derivatives by q, a and e; and by k
  Program both;         // by q, a and k
};

struct Formula {
  std::string text;
  Term term[2];                     // edges without features, with features
  Program finish, finish_gradient;  // the derivatives by the sum and by each scalar, then the value
  bool reads_query = false, reads_vector = false, has_finish = false, nonnegative = false;
  std::vector<float> start;  // of the learned scalars
};

// Throws Error with the column and what was expected there.
Formula parse(const std::string& text);

}  // namespace heed::formula
