// Dense products by Eigen, whose own threads stay off (they change bits): fixed tiles run in parallel, and the long
// dimension of a sum is split at a constant and merged in order.
#pragma once

#include "kernels/attention.h"

namespace heed {

// y (+)= x w + bias         x: n x in, w: in x out, y: n x out, bias: 1 x out, may be none
template <class T>
void product(View<const T> x, View<const T> w, Sink<T> y, View<const T> bias = {});

// dx (+)= dy w^T            dy: n x out, w: in x out, dx: n x in
template <class T>
void product_by_transpose(View<const T> dy, View<const T> w, Sink<T> dx);

// dw (+)= x^T dy            x: n x in, dy: n x out, dw: in x out; `parts` is a buffer kept between calls
// db (+)= the sums of dy's columns, 1 x out; may be none
template <class T>
void product_of_transpose(View<const T> x, View<const T> dy, Sink<T> dw, Matrix<T>& parts, Sink<T> db = {});

}  // namespace heed
