// heed list: what can be named on the command line.
#include "cli/command.h"
#include "datasets/dataset.h"
#include "kernels/score.h"
#include "layers/models.h"
#include "train/train.h"

namespace heed::cli {

namespace {

using Table = std::vector<std::vector<std::string>>;

template <class Entry>
Table menu_table(const std::vector<Entry>& menu) {
  Table rows{{"name", "formula", "paper", "cost"}};
  for (const Entry& entry : menu)
    rows.push_back({entry.name, entry.about.formula, entry.about.paper, entry.about.cost});
  return rows;
}

}  // namespace

void add_list(CLI::App& app) {
  auto* command = app.add_subcommand("list", "Show the names of datasets, models, scores and normalisers");
  command->footer(
      "heed list scores and heed list normalisers show formulas; q and k are the query's and the key's d channels of "
      "a\n"
      "head, a and p are learned, t is the threshold of a row.");
  auto kind = std::make_shared<std::string>();
  command->add_option("kind", *kind, "datasets, models, scores or normalisers; default: all")
      ->check(CLI::IsMember({"datasets", "models", "scores", "normalisers"}));
  command->callback([kind] {
    if (*kind == "scores") return print(table(menu_table(score_menu()), false));
    if (*kind == "normalisers") return print(table(menu_table(normaliser_menu()), false));
    Table rows{{"kind", "name", "what it is"}};
    if (*kind != "models")
      for (const auto& entry : datasets()) rows.push_back({"dataset", entry.name, entry.description});
    if (*kind != "datasets")
      for (const auto& model : model_menu()) rows.push_back({"model", model.name, model.about});
    if (kind->empty()) {
      for (const auto& score : score_menu()) rows.push_back({"score", score.name, score.about.formula});
      for (const auto& normaliser : normaliser_menu())
        rows.push_back({"normaliser", normaliser.name, normaliser.about.formula});
    }
    print(table(rows, false));
  });
}

}  // namespace heed::cli
