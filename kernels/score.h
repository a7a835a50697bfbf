// Score and Normaliser as values: handles to the compiled stages of one entry of a menu, or of a user's own struct
// (make_score.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

namespace heed {

struct Batch;  // batch.h
namespace stages {  // stages.h, tiles.h
template <class T>
struct Chunk;
template <class T>
struct ChunkGradient;
template <class T>
struct RowState;
template <class T>
struct TileState;
}  // namespace stages

// Widths of a head that have kernels of their own; 0 stands for any.
inline constexpr int kScoreWidths[] = {0, 1, 8, 16, 32, 64};
inline constexpr int kScoreWidthCount = 6;

template <class T>
struct ScoreStages {  // [own side is the query][width]
  void (*sums[2][kScoreWidthCount])(const void*, const stages::Chunk<T>&, T*) = {};
  void (*gradient[2][kScoreWidthCount])(const void*, const stages::Chunk<T>&, const stages::ChunkGradient<T>&) = {};
  void (*tile_sums)(const void*, const T*, const T*, const T*, int, T*) = nullptr;
  void (*tile_gradient)(const void*, const T*, const T*, const T*, int, const T*, const std::uint64_t*, T*, T*,
                        T*) = nullptr;
  void (*finish)(const void*, const T*, const T*, int, int, T*) = nullptr;
  void (*finish_gradient)(const void*, const T*, const T*, int, int, T*, T*) = nullptr;
};

struct Score {
  std::string name;
  bool contracts = false;     // q, k and e are one channel per head, reduced by learned vectors (GAT)
  bool reads_vector = false;  // a is used
  int scalars = 0;            // learned scalars per head
  bool kinked = false;        // ds/dq is 1 where s > 0, and slope_below elsewhere
  float slope_below = 0;
  std::shared_ptr<const void> self;
  ScoreStages<float> single;
  ScoreStages<double> twice;

  template <class T>
  const ScoreStages<T>& stages() const {
    if constexpr (std::is_same_v<T, float>)
      return single;
    else
      return twice;
  }
};

template <class T>
struct NormaliserStages {
  void (*raw)(T*, const Batch&, int, const stages::RowState<T>&, T*, T*) = nullptr;
  void (*merge)(const stages::RowState<T>&, const stages::RowState<T>&, int) = nullptr;
  void (*close)(const stages::RowState<T>&, int, T*, T*) = nullptr;
  void (*gradient)(T*, T*, const T*, const T*, const T*, const Batch&, int) = nullptr;
  bool (*tile)(T*, const stages::TileState<T>&) = nullptr;
  void (*tile_gradient)(T*, T*, const T*, const T*, const T*) = nullptr;
};

struct Normaliser {
  std::string name;
  bool couples = false;      // weights of a row depend on each other
  bool exponential = false;  // slope, drain and share are w
  NormaliserStages<float> single;
  NormaliserStages<double> twice;

  template <class T>
  const NormaliserStages<T>& stages() const {
    if constexpr (std::is_same_v<T, float>)
      return single;
    else
      return twice;
  }
};

// The menus, in the order of `Scores` and `Normalisers`.
const std::vector<Score>& score_menu();
const std::vector<Normaliser>& normaliser_menu();

// The entry of that name. Throws Error with the nearest names.
const Score& score_named(const std::string& name);
const Normaliser& normaliser_named(const std::string& name);

}  // namespace heed
