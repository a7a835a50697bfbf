// Score and Normaliser as values: handles to the compiled stages of one entry of a menu, or of a user's own struct
// (make_score.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/filter.h"

namespace heed {

struct Batch;       // batch.h
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

// A line of `heed list scores` and `heed list normalisers`.
struct About {
  const char *formula = "", *paper = "", *cost = "";
};

// What a score wants done to the projected q and k of each head before it meets them.
enum class Prepare {
  none,
  unit,         // q/|q| and k/|k|
  centre_unit,  // the same, of the vectors less their means
  bilinear,     // W k, with W learned
  hidden,       // q and k are projections of their own, of any width: halves of a hidden layer
};

// Widths of a head that have kernels of their own; 0 stands for any. Those of 32 and 64 would gain nothing.
inline constexpr int kScoreWidths[] = {0, 1, 8, 16};
inline constexpr int kScoreWidthCount = 4;
inline constexpr int kMaxScalars = 4;  // learned per head: three of a score, and a temperature

template <class T>
struct Finish {          // how sums over channels become scores: s = scale e^-t finish(sum, p, width)
  const T* p = nullptr;  // a run of vectors for each learned scalar; where `tempered`, t is the last
  int width = 1;         // channels of a head
  T scale = 1;
  bool tempered = false;
};

struct Fused;  // fused.h
struct FusedShape {
  int heads, width;
};
// Of one head the widths of as many vectors: 1 to 8 channels, and 9 to 16. Less than 8 channels each, as eight heads of
// an output layer have them, are for scores that read one number of a head.
inline constexpr FusedShape kFusedShapes[] = {{4, 16}, {8, 8}, {4, 8}, {8, 16}, {4, 32}, {1, 8}, {1, 16},
                                              {8, 1},  {8, 2}, {8, 3}, {8, 4},  {8, 5},  {8, 6}, {8, 7}};
inline constexpr int kFusedShapeCount = sizeof kFusedShapes / sizeof kFusedShapes[0];

template <class T>
struct ScoreStages {  // [own side is the query][width]
  void (*sums[2][kScoreWidthCount])(const void*, const stages::Chunk<T>&, T*) = {};
  void (*gradient[2][kScoreWidthCount])(const void*, const stages::Chunk<T>&, const stages::ChunkGradient<T>&) = {};
  void (*tile_sums)(const void*, const T*, const T*, const T*, int, T*) = nullptr;  // none: it runs row by row
  void (*tile_gradient)(const void*, const T*, const T*, const T*, int, const T*, const std::uint64_t*, T*, T*,
                        T*) = nullptr;
  void (*finish)(const void*, const T*, const Finish<T>&, int, int, T*) = nullptr;
  void (*finish_gradient)(const void*, const T*, const Finish<T>&, int, int, T*, T*) = nullptr;
  const Fused* fused[kFusedShapeCount] = {};  // none: it goes through the stages
};

struct Score {
  std::string name;
  About about;
  Prepare prepares = Prepare::none;
  bool contracts = false;     // q, k and e are one channel per head, reduced by learned vectors (GAT)
  bool reads_query = true;    // otherwise the key alone decides
  bool reads_vector = false;  // a is used
  int scalars = 0;            // learned scalars per head
  std::vector<float> start;   // where each of them begins
  bool nonnegative = false;   // s >= 0 always
  bool kinked = false;        // ds/dq is 1 where s > 0, and slope_below elsewhere
  float slope_below = 0;
  bool has_finish = false;
  bool linear = true;                               // the finish is the sum times a number
  double scale = 1;                                 // what scores are multiplied with: 1 / a temperature that is fixed
  bool tempered = false;                            // the last scalar is the logarithm of a learned temperature
  Filter filter;                                    // of the finished scores, with temperature and bias
  const void* kind = nullptr;                       // one address for all scores of one struct
  void (*check_width)(const void*, int) = nullptr;  // throws Error for a width of a head that it refuses; or none
  std::shared_ptr<const void> self;
  ScoreStages<float> single;
  ScoreStages<double> twice;

  bool finishes() const { return has_finish || scale != 1 || tempered; }
  template <class T>
  const ScoreStages<T>& stages() const {
    if constexpr (std::is_same_v<T, float>)
      return single;
    else
      return twice;
  }
  template <class T>
  Finish<T> finish(const T* p, int width) const {
    return {p, width, static_cast<T>(scale), tempered};
  }
};

// The score divided by a temperature above 0: a fixed one, or one per head that is learned from there on (then its
// logarithm is one more scalar, the last). Throws Error where it is not above 0 or the score has a learned one.
Score with_temperature(Score score, double temperature, bool learned = false);

// The score followed by a filter, in its name too: with_filter(score, {.topk = 8}). A second one filters further.
// Throws Error where topk is negative, or above infinite or not a number.
Score with_filter(Score score, const Filter& filter);

template <class T>
struct NormaliserStages {
  void (*raw)(T*, const Batch&, int, const stages::RowState<T>&, T*, T*) = nullptr;
  void (*merge)(const stages::RowState<T>&, const stages::RowState<T>&, int) = nullptr;
  void (*close)(const stages::RowState<T>&, int, T*, T*) = nullptr;
  void (*gradient)(T*, T*, const T*, const T*, const T*, const Batch&, int) = nullptr;
  void (*measure)(T*, T*, const T*, const T*, const Batch&, int) = nullptr;  // where `measures`
  T (*solve)(const T*, std::size_t) = nullptr;                               // where `solves`
  void (*weigh)(T*, const T*, int) = nullptr;
  bool (*tile)(T*, const stages::TileState<T>&) = nullptr;  // none: it runs row by row
  void (*tile_gradient)(T*, T*, const T*, const T*, const T*) = nullptr;
};

struct Normaliser {
  std::string name;
  About about;
  bool couples = false;      // weights of a row depend on each other
  bool exponential = false;  // weights add up to 1, and slope, drain and share are w
  bool measures = false;     // backward measures delta in a pass of its own; otherwise delta is <dy, y>
  bool solves = false;       // tau is solved for from the scores of a row
  double reach = 0;          // from those that are less than this under the greatest
  bool nonnegative = false;  // takes scores that are never negative alone
  const void* kind = nullptr;
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

// Throws Error where the two do not go together.
void check(const Score& score, const Normaliser& normaliser);

// The menus, in the order of `Scores` (then `VectorScores`) and `Normalisers`.
const std::vector<Score>& score_menu();
const std::vector<Normaliser>& normaliser_menu();

struct FilterEntry {
  std::string name;
  About about;
};
const std::vector<FilterEntry>& filter_menu();

// The entry of that name, softdtw(STEPS) or softdtw(STEPS, GAMMA), or what a formula says (formula.h), with the filters
// that follow: "dot", "dot topk(8)". Throws Error with the nearest names.
Score score_named(const std::string& name);
const Normaliser& normaliser_named(const std::string& name);

}  // namespace heed
