// Shows how training and downloads go, on standard error: a bar on a terminal, plain lines elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "cli/command.h"
#include "train/recipes.h"

namespace heed::cli {

std::string bar(double share);
// As much of a line as the terminal has columns: one that wraps could not be drawn over.
std::string fitting(const std::string& text);

class Progress {
 public:
  Progress(std::string title, int runs, int epochs, bool quiet);
  ~Progress();
  void epoch(const Epoch& e);
  void run(int number, const Run& run);

 private:
  void draw(const Epoch& e);
  void erase();

  std::string title_;
  int runs_, epochs_, ended_ = 0;
  bool quiet_, terminal_, drawn_ = false, titled_ = false;
  double best_ = 0;
  std::vector<double> done_;  // share of each run
  std::chrono::steady_clock::time_point start_, last_;
};

class DownloadBar {
 public:
  explicit DownloadBar(bool quiet);
  ~DownloadBar();
  void show(const std::string& what, std::uint64_t bytes, std::uint64_t of);

 private:
  bool quiet_, terminal_, drawn_ = false;
  std::string said_;
  std::chrono::steady_clock::time_point last_;
};

// The dataset of a recipe, downloaded where it is found nowhere and that is allowed.
Dataset load_dataset(const Recipe& recipe, const Source& source, bool quiet);

}  // namespace heed::cli
