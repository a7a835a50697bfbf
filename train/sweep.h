// A sweep: designs, which are sets of options, over datasets and seeds. What its TOML file says, in which order its
// runs are started within the memory there is, what is written down of a run, and the statistics of its table.
//
//   runs = 10                             options as in `heed train --config`, common to all
//   baseline = "pearson, local | self"    which design the others are held against
//   mask = ["local | self", "local(2)"]   a list is an axis: each value makes a design of its own
//   [dataset.cora]                        the datasets, and what is said for one alone; or dataset = ["cora", "pubmed"]
//   epochs = 200
//   [design.pearson]                      its options over all others; without designs the common ones make one.
//   score = "pearson"                     In a design, too, a list is an axis, and `dataset` says on which it is tried
//
// A list of seeds are the seeds of the runs; else run r has seed + r. Run r takes split r and the data of the first
// seed, as in `heed train`. Common options of attention are left out for models without attention.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "train/recipes.h"

namespace heed {

struct Trial {  // a design on a dataset
  std::string design, dataset;
  std::string place;                 // of the design in the file
  std::vector<Setting> settings;     // for resolve(), without seed, runs and threads
  std::vector<std::uint64_t> seeds;  // a run
  Recipe recipe;                     // of the first run

  // By prepare():
  std::string data;       // a fingerprint of the data and all splits
  std::string files;      // of those that masks read
  int splits = 1;         // of the data, or 1 where the options name one
  double test_share = 0;  // nodes of test by nodes of training where splits overlap; else 0
};

struct Sweep {
  std::vector<Trial> trials;                   // design by design
  std::vector<std::string> designs, datasets;  // in the order of the file
  std::string baseline;                        // a design; "": none
};

constexpr std::int64_t kMostRuns = 100'000;

// Throws Error naming file, line and option: what is no TOML, an unknown option, a value or a combination of options
// that cannot be, two designs of one name, more than kMostRuns runs (before any is made).
Sweep parse_sweep(const std::string& text, const std::string& file);

// Loads every dataset once and builds every trial's network on it, one at a time, so that nothing is left that could be
// wrong with a run from the start. Throws Error naming the design's place.
void prepare(Sweep& sweep, const std::function<Dataset(const Recipe&)>& load,
             const std::function<void(const Trial&)>& next = {});

// Of the options of run r, what `heed train` must be told.
std::vector<Setting> settings_of(const Trial& trial, std::size_t run);

// All that the results of a sweep depend on, as TOML; and what is the first thing that differs in two of these, or "".
std::string identity(const Sweep& sweep);
std::string difference(const std::string& then, const std::string& now);

// What became of a run.
struct Outcome {
  double test = 0, valid = 0;  // in percent
  double epochs = 0, epoch_ms = 0, seconds = 0, peak_mb = 0;
  Offset parameters = 0;
  std::string error;  // it failed; all else is 0
};
struct RunId {
  std::size_t trial = 0, run = 0;
  bool operator==(const RunId&) const = default;
};

// Outcomes of trials and runs, and how they are kept: a line of JSON each. Of two lines for one run the later counts;
// what stands after the last line's end was cut off by a crash and is left out. Throws Error naming the line that is
// not of this sweep.
using Outcomes = std::vector<std::vector<std::optional<Outcome>>>;
Outcomes none_yet(const Sweep& sweep);
std::string to_line(const Sweep& sweep, RunId id, const Outcome& outcome);
struct Log {
  Outcomes outcomes;
  std::size_t bytes = 0;  // of whole lines
};
Log read_log(const std::string& text, const std::string& file, const Sweep& sweep);

// Which run is next: first a run of each trial, then a second of each, ..., and of those the first that fits. A trial
// is expected to take a tenth more than its runs took, or half as much again as those on its dataset; where nothing is
// known, it runs alone. What fits nowhere runs alone, too.
class Queue {
 public:
  // Runs that have an outcome without an error are done.
  Queue(const Sweep& sweep, const Outcomes& outcomes, int jobs);

  struct Running {
    RunId id;
    double resident_mb = 0;  // now
  };
  // `available_mb`: what the machine could still give away now. None: wait until a run has ended, or nothing is left.
  std::optional<RunId> next(double available_mb, std::span<const Running> running);
  void ended(RunId id, const Outcome& outcome);
  void again(RunId id);  // it got too little memory: once more, alone
  bool tried_alone(RunId id) const;
  std::size_t waiting() const { return waiting_.size(); }
  double seconds_left(std::span<const Running> running) const;  // below 0: nobody knows

 private:
  double expected_mb(std::size_t trial) const;  // below 0: nobody knows
  double expected_seconds(std::size_t trial) const;

  struct Known {
    double peak_mb = 0, seconds = 0;
    int runs = 0;
    void add(const Outcome& o);
  };
  const Sweep& sweep_;
  int jobs_;
  std::vector<RunId> waiting_, alone_;
  std::vector<Known> trials_, datasets_;
  std::vector<std::size_t> dataset_of_;  // a trial
};

// Mean and standard deviation (n - 1; 0 for one value).
struct Spread {
  int count = 0;
  double mean = 0, deviation = 0;
};
Spread spread(std::span<const double> values);

// Student's t test of paired differences, two-sided, with n - 1 degrees of freedom. Over runs on one fixed split, or on
// splits without common nodes, differences are independent, and the variance of their mean is s^2 / n: test_share 0.
// Over splits that were drawn from the same nodes they are not, and this would find differences that are not there;
// there it is s^2 (1/n + n_test / n_train), the corrected resampled t test of Nadeau & Bengio (Machine Learning 52,
// 2003, section 3.2): test_share is n_test / n_train. p is NaN for fewer than two differences, and where all of them
// are equal and not 0: so few runs, or test nodes, say nothing of the spread. It is 1 where all are 0.
struct PairedTest {
  int pairs = 0;
  double difference = 0, t = 0, p = 0;
};
PairedTest paired_t(std::span<const double> differences, double test_share = 0);

// p-values after Holm (Scandinavian Journal of Statistics 6, 1979): the chance of one or more false findings among all
// of them is kept. NaN stays, and does not count.
std::vector<double> holm(const std::vector<double>& p);

// A line of the table, for a trial.
struct SweepRow {
  std::size_t trial = 0;
  Spread test, valid, epochs, epoch_ms, seconds;
  double peak_mb = 0;
  Offset parameters = 0;
  int failed = 0;
  std::string error;   // of the first run that failed
  bool best = false;   // of its dataset, by the mean of the test metric
  PairedTest against;  // the baseline; its own row, and without one: no pairs. Runs of one seed on one split and data
                       // are a pair; of several on one split the mean counts, once.
  double p_holm = 0;   // over the dataset's rows
};
std::vector<SweepRow> rows_of(const Sweep& sweep, const Outcomes& outcomes);

}  // namespace heed
