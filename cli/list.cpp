// heed list: what can be named on the command line.
#include "cli/command.h"
#include "datasets/dataset.h"
#include "graph/error.h"
#include "kernels/score.h"
#include "layers/models.h"
#include "sampling/keys.h"
#include "train/train.h"

namespace heed::cli {

void add_list(CLI::App& app) {
  auto* command = app.add_subcommand("list", "Show the names of datasets, models, scores, normalisers, masks and keys");
  auto kind = std::make_shared<std::string>();
  command->add_option("kind", *kind,
                      "masks or keys: their rules, how they are written and what they cost; else the rest");
  command->callback([kind] {
    if (!kind->empty()) {
      const bool masks = choose("kind", *kind, {"masks", "keys"}) == 0;
      std::vector<std::vector<std::string>> rules{{masks ? "mask" : "keys", "what it is"}};
      for (const RuleEntry& rule : masks ? mask_menu() : keys_menu()) rules.push_back({rule.usage, rule.about});
      rules.push_back({"A | B, A & B, A - B", "in either, in both, in the first alone; - binds most, | least; (...)"});
      if (masks) rules.push_back({"0-3: A; 4-7: B", "each head's own"});
      return print(table(rules, false));
    }
    std::vector<std::vector<std::string>> rows{{"kind", "name", "what it is"}};
    for (const auto& entry : datasets()) rows.push_back({"dataset", entry.name, entry.description});
    for (const auto& model : model_menu()) rows.push_back({"model", model.name, model.about});
    for (const auto& score : score_menu()) rows.push_back({"score", score.name, ""});
    for (const auto& normaliser : normaliser_menu()) rows.push_back({"normaliser", normaliser.name, ""});
    for (const auto& rule : mask_menu()) rows.push_back({"mask", rule.usage, rule.about});
    for (const auto& rule : keys_menu()) rows.push_back({"keys", rule.usage, rule.about});
    print(table(rows, false));
  });
}

}  // namespace heed::cli
