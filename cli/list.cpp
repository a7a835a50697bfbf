// heed list: what can be named on the command line.
#include <CLI/CLI.hpp>

#include "cli/command.h"
#include "datasets/dataset.h"
#include "graph/error.h"
#include "kernels/score.h"
#include "layers/models.h"
#include "sampling/keys.h"
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
  auto* command =
      app.add_subcommand("list", "Show the names of datasets, models, scores, filters, normalisers, masks and keys");
  command->footer(
      "heed list scores and the like show formulas, papers and costs; q and k are the query's and the key's d "
      "channels\n"
      "of a head, a and p are learned, t is the threshold of a row. Filters follow a score: \"dot topk(8)\".\n\n"
      "A score may be a formula, too: --score 'a*leaky(q+k, 0.2)' is summed over the channels, and\n"
      "--score 'p0 * sum(q*k) / sqrt(d)' says where; kernels/formula.h has the grammar.");
  auto kind = std::make_shared<std::string>();
  command->add_option("kind", *kind, "datasets, models, scores, filters, normalisers, masks or keys; default: all");
  command->callback([kind] {
    if (!kind->empty())
      choose("kind", *kind, {"datasets", "models", "scores", "filters", "normalisers", "masks", "keys"});
    if (*kind == "scores") {
      Table rows = menu_table(score_menu());
      rows.push_back({"'FORMULA'", "e.g. a*leaky(q+k, 0.2), or p0 * sum(q*k) / sqrt(d)", "", "interpreted; CPU"});
      return print(table(rows, false));
    }
    if (*kind == "filters") return print(table(menu_table(filter_menu()), false));
    if (*kind == "normalisers") return print(table(menu_table(normaliser_menu()), false));
    if (*kind == "masks" || *kind == "keys") {
      const bool masks = *kind == "masks";
      Table rules{{masks ? "mask" : "keys", "what it is"}};
      for (const RuleEntry& rule : masks ? mask_menu() : keys_menu()) rules.push_back({rule.usage, rule.about});
      rules.push_back({"A | B, A & B, A - B", "in either, in both, in the first alone; - binds most, | least; (...)"});
      if (masks) rules.push_back({"0-3: A; 4-7: B", "each head's own"});
      return print(table(rules, false));
    }
    Table rows{{"kind", "name", "what it is"}};
    if (*kind != "models")
      for (const auto& entry : datasets()) rows.push_back({"dataset", entry.name, entry.description});
    if (*kind != "datasets")
      for (const auto& model : model_menu()) rows.push_back({"model", model.name, model.about});
    if (kind->empty()) {
      for (const auto& score : score_menu()) rows.push_back({"score", score.name, score.about.formula});
      for (const auto& filter : filter_menu()) rows.push_back({"filter", filter.name, filter.about.formula});
      for (const auto& normaliser : normaliser_menu())
        rows.push_back({"normaliser", normaliser.name, normaliser.about.formula});
      for (const auto& rule : mask_menu()) rows.push_back({"mask", rule.usage, rule.about});
      for (const auto& rule : keys_menu()) rows.push_back({"keys", rule.usage, rule.about});
    }
    print(table(rows, false));
  });
}

}  // namespace heed::cli
