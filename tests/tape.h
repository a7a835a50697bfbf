// A scalar to differentiate in tests of the tape: the elements of a value, each times a fixed number, summed. The
// numbers are then the gradient that arrives at the value.
#pragma once

#include "layers/tape.h"
#include "tests/support.h"

namespace heed::test {

template <class T>
Var<T> inner(Var<T> y, Matrix<T> weights) {
  REQUIRE(y.rows() == weights.rows());
  REQUIRE(y.cols() == weights.cols());
  Var<T> sum = y.tape->result(1, 1, {y});
  auto kept = std::make_shared<Matrix<T>>(std::move(weights));
  y.tape->record(
      sum,
      [=] {
        double total = 0;
        for (Offset t = 0; t < kept->size(); ++t)
          total += static_cast<double>(kept->data()[t]) * static_cast<double>(y.value().data()[t]);
        sum.value()(0, 0) = static_cast<T>(total);
      },
      [=] {
        Sink<T> dy = y.sink();
        if (!dy) return;
        for (Offset t = 0; t < kept->size(); ++t)
          dy.to.data[t] = (dy.add ? dy.to.data[t] : T(0)) + sum.grad()(0, 0) * kept->data()[t];
      });
  return sum;
}

}  // namespace heed::test
