// The stages of scores that need whole vectors (`VectorScores`): kLanes edges of one head at a time, each in a lane.
#pragma once

#include <vector>

#include "kernels/stages.h"

namespace heed::stages {

// The vectors of edges [first, first + kLanes) of a batch and of head h, channel by channel, in the roles of query and
// key; past the last edge the last again.
template <bool own_is_query, class T>
void load_vectors(const Chunk<T>& x, int first, int h, Lanes<T>* q, Lanes<T>* k) {
  for (int l = 0; l < kLanes; ++l) {
    const int t = std::min(first + l, x.batch->n - 1), at = h * x.width;
    const T *own = x.own.row(x.batch->rows[t]) + at, *other = x.other.row(x.batch->ids[t]) + at;
    for (int c = 0; c < x.width; ++c) {
      q[c].v[l] = (own_is_query ? own : other)[c];
      k[c].v[l] = (own_is_query ? other : own)[c];
      if (x.edge) k[c].v[l] += x.edge.row(x.entry[t])[at + c];
    }
  }
}

template <class T>
Lanes<T>* vector_room(int n) {
  thread_local std::vector<Lanes<T>> room;
  if (room.size() < static_cast<std::size_t>(n)) room.resize(static_cast<std::size_t>(n));
  return room.data();
}

// to[t][h] = value(q, k + e)
template <class S, class T, bool own_is_query>
void vector_sums(const void* self, const Chunk<T>& x, T* to) {
  const S& score = *static_cast<const S*>(self);
  Lanes<T>*q = vector_room<T>(2 * x.width + score.room(x.width)), *k = q + x.width, *room = k + x.width;
  for (int first = 0; first < x.batch->n; first += kLanes)
    for (int h = 0; h < x.heads; ++h) {
      load_vectors<own_is_query>(x, first, h, q, k);
      const Lanes<T> s = score.value(q, k, x.width, room);
      for (int l = 0; l < kLanes && first + l < x.batch->n; ++l) to[x.batch->at[first + l] + h] = s.v[l];
    }
}

template <class S, class T, bool own_is_query>
void vector_gradient(const void* self, const Chunk<T>& x, const ChunkGradient<T>& g) {
  const S& score = *static_cast<const S*>(self);
  const Batch& batch = *x.batch;
  const int width = x.width, total = x.heads * width;
  Lanes<T>*q = vector_room<T>(4 * width + score.room(width)), *k = q + width, *dq = k + width, *dk = dq + width;
  for (int s = 0; s < batch.segments; ++s) {
    const Target<T>& to = g.down[s];
    if (to.from == nullptr)
      std::fill_n(to.to, total, T(0));
    else if (to.from != to.to)
      std::copy_n(to.from, total, to.to);
  }
  for (int first = 0; first < batch.n; first += kLanes)
    for (int h = 0; h < x.heads; ++h) {
      load_vectors<own_is_query>(x, first, h, q, k);
      score.value(q, k, width, dk + width);
      score.grad(q, k, width, dk + width, dq, dk);
      const Lanes<T>* down = own_is_query ? dq : dk;
      int s = 0;
      for (int t = first; t < std::min(batch.n, first + kLanes); ++t) {
        while (t >= batch.segment[s].end) ++s;
        const T ds = g.ds[batch.at[t] + h];
        T* to = g.down[s].to + h * width;
        for (int c = 0; c < width; ++c) to[c] += ds * down[c].v[t - first];
        if (own_is_query && g.dedge)
          for (int c = 0; c < width; ++c) g.dedge.row(x.entry[t])[h * width + c] = ds * dk[c].v[t - first];
      }
    }
}

}  // namespace heed::stages
