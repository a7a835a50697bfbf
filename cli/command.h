// What the subcommands of `heed` share. Each lives in one file and enters itself through a function named here.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "train/recipes.h"

namespace CLI {  // whose header takes long to compile
class App;
class Validator;
}  // namespace CLI

namespace heed::cli {

void add_train(CLI::App& app);     // train a node classifier
void add_sweep(CLI::App& app);     // train many, and compare them
void add_predict(CLI::App& app);   // what a trained model says
void add_list(CLI::App& app);      // show what can be named
void add_datasets(CLI::App& app);  // show the datasets and where they are
void add_info(CLI::App& app);      // show what is in one
void add_convert(CLI::App& app);   // write one in another format

// A table whose first row heads it. What a style gives a meaning to is escaped.
enum class Style { plain, markdown, csv, latex };
struct Cell {
  std::string text;
  bool strong = false;  // bold; a star behind it in plain text
};
std::string table(const std::vector<std::vector<Cell>>& rows, Style style);
std::string table(const std::vector<std::vector<std::string>>& rows, bool markdown);  // or plain

// To standard output, or Error where it does not take all of it.
void print(const std::string& text);
// To standard error; a program that nobody listens to goes on.
void note(const std::string& text);

// Where datasets come from: --data and --offline.
struct Source {
  std::string data;
  bool offline = false;
};
void add_data(CLI::App& command, std::string& data, const std::string& group = "Options");
void add_source(CLI::App& command, Source& source, const std::string& group = "Options");

// What is given of fields(): on the command line, with DATASET in front, and in the file of --config. `dataset` and
// `model` say what these may be.
struct Given {
  std::vector<Setting> typed;
  std::optional<std::string> config;
  Source source;

  std::vector<Setting> settings() const;  // the file's, then those typed, each in order
};
// `trains`: options without a meaning for what is trained already are hidden otherwise.
void add_fields(CLI::App& command, Given& given, const std::string& dataset, const std::string& model, bool trains);

// Becomes true at the first SIGINT or SIGTERM after the first call; the second one ends the program as usual.
const std::atomic<bool>& interrupted();

// node,class,p0,p1,... and a line for each node.
std::string predictions_csv(const Matrix<float>& logits, Loss loss);

// What an option takes, checked before it is read: a whole number (decimal), or any text.
CLI::Validator whole_number(std::int64_t low, std::int64_t high);
CLI::Validator not_empty();

// Words separated by commas; at least one.
std::vector<std::string> names_in(const std::string& list);

}  // namespace heed::cli
